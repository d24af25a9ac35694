"use strict";

const $ = (id) => document.getElementById(id);
const SVG = "http://www.w3.org/2000/svg";
let facts = null;
let latest = null;

async function json(response) {
  try {
    return await response.json();
  } catch {
    return { error: `the server answered ${response.status} without saying why.` };
  }
}

async function showFacts() {
  facts = await json(await fetch("facts"));
  document.title = facts.name;
  $("name").textContent = facts.name;
  $("network").textContent = `${facts.network}, ${facts.width} × ${facts.height} pixels`;
  $("untrained").hidden = !facts.untrained;
  $("bounds").textContent = `${(facts.max_bytes / 1e6).toFixed(0)} MB and ${(facts.max_pixels / 1e6).toFixed(0)} megapixels at most`;
}

function say(status, error = "") {
  $("status").textContent = status;
  $("error").textContent = error;
}

async function segment(file) {
  latest?.abort();
  const mine = (latest = new AbortController());
  $("result").hidden = true;
  if (facts && file.size > facts.max_bytes) {
    say("", `${file.name} has ${(file.size / 1e6).toFixed(1)} MB; at most ${(facts.max_bytes / 1e6).toFixed(0)} MB are taken.`);
    return;
  }
  say(`Labelling ${file.name} …`);
  try {
    const response = await fetch("segment", { method: "POST", body: file, signal: mine.signal });
    const answer = await json(response);
    if (mine.signal.aborted) return;
    if (!response.ok) {
      say("", answer.error[0].toUpperCase() + answer.error.slice(1));
      return;
    }
    await show(file, answer);
    say(`${file.name}: ${answer.width} × ${answer.height} pixels, ${answer.classes.length} classes.`);
  } catch (error) {
    if (error.name !== "AbortError") say("", `The server cannot be reached, or the file cannot be read: ${error.message}.`);
  }
}

async function show(file, answer) {
  $("labels").src = `data:image/png;base64,${answer.labels_png}`;
  $("legend").replaceChildren(...answer.classes.map(legendRow));
  URL.revokeObjectURL($("photo").src);
  $("photo").hidden = false;
  $("photo").src = URL.createObjectURL(file);
  await $("labels").decode();
  const shown = await $("photo").decode().then(() => true, () => false);
  $("photo").hidden = !shown;
  $("no-photo").hidden = shown;
  $("opacity-row").hidden = !shown;
  setOpacity();
  $("result").hidden = false;
}

function legendRow({ name, colour, share }) {
  const row = document.createElement("tr");
  const title = document.createElement("th");
  title.scope = "row";
  const swatch = document.createElementNS(SVG, "svg");
  swatch.setAttribute("aria-hidden", "true");
  const square = document.createElementNS(SVG, "rect");
  square.setAttribute("width", "100%");
  square.setAttribute("height", "100%");
  square.setAttribute("fill", colour);
  swatch.append(square);
  title.append(swatch, name);
  const figure = document.createElement("td");
  figure.textContent = share < 0.0005 ? "< 0.1 %" : `${(100 * share).toFixed(1)} %`;
  row.append(title, figure);
  return row;
}

function setOpacity() {
  const percent = $("photo").hidden ? 100 : Number($("opacity").value);
  $("labels").style.opacity = percent / 100;
  $("opacity-value").textContent = `${percent} %`;
}

$("file").addEventListener("change", (event) => {
  if (event.target.files.length) segment(event.target.files[0]);
});
$("opacity").addEventListener("input", setOpacity);
for (const name of ["dragover", "dragleave", "drop"]) {
  // On the whole window, so that a photo dropped beside the field does not replace the page.
  window.addEventListener(name, (event) => {
    event.preventDefault();
    $("drop").classList.toggle("over", name === "dragover");
    if (name === "drop" && event.dataTransfer.files.length) segment(event.dataTransfer.files[0]);
  });
}
showFacts().catch(() => say("", "The server cannot be reached."));
