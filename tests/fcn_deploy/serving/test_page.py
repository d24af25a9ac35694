"""The page a person drops a photo on: what it answers, and how it looks and works in a browser."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcn_deploy as fd
from tests.browser import PROGRAM, Page, browser
from tests.expected import expected_labels
from tests.fcn_deploy.serving.clients import address, call
from tests.fcn_deploy.serving.conftest import OPTIONS

needs_browser = pytest.mark.skipif(PROGRAM is None, reason="no Chromium is installed")


def labels_of(answer: dict[str, str]) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(answer["labels_png"]))))


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "TIFF", "WEBP"])
def test_labels_of_a_photo_are_pytorchs_in_its_own_size(
    server: fd.Server, photo: Path, tmp_path: Path, kind: str
) -> None:
    file = tmp_path / "sent"
    Image.open(photo).save(file, kind)
    status, answer, headers = call(server, "/segment", file.read_bytes())

    truth = expected_labels(file, 96)
    assert status == 200
    assert (answer["height"], answer["width"]) == (60, 80)
    assert np.array_equal(labels_of(answer), truth)
    assert answer["untrained"] is True
    counts = np.bincount(truth.ravel()) / truth.size
    assert [c["share"] for c in answer["classes"]] == pytest.approx(sorted(counts[counts > 0], reverse=True))
    assert headers["x-content-type-options"] == "nosniff"


def test_keep_aspect_pads(shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (predicted,) = fd.predict(shared_bundle, [photo], fd.PredictOptions(tmp_path, keep_aspect=True))
    with fd.Server(shared_bundle, replace(OPTIONS, keep_aspect=True)) as server:
        answer = call(server, "/segment", photo.read_bytes())[1]

    assert predicted.labels_path is not None
    with Image.open(predicted.labels_path) as truth:
        assert np.array_equal(labels_of(answer), np.array(truth))


def test_nothing_is_fetched_from_elsewhere(server: fd.Server) -> None:
    import http.client

    connection = http.client.HTTPConnection(address(server), timeout=20)
    found = {}
    for path in ("/", "/page.css", "/page.js"):
        connection.request("GET", path)
        response = connection.getresponse()
        found[path] = response.getheader("content-type", ""), response.read().decode()
        assert "default-src 'none'" in response.getheader("content-security-policy", "")
    connection.close()

    assert [kind.split(";")[0] for kind, _ in found.values()] == ["text/html", "text/css", "text/javascript"]
    text = "".join(text for _, text in found.values()).replace("http://www.w3.org/2000/svg", "")
    assert "http:" not in text
    assert "https:" not in text


@pytest.fixture(scope="module")
def sample_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[fd.Server]:
    """A server of the trained sample, small enough to be exported in a test."""
    weights = fd.WeightsOptions(fd.SAMPLE_CHECKPOINT)
    folder = tmp_path_factory.mktemp("sample") / "shapes"
    options = fd.ExportOptions(
        fd.Variant.FCN8S, folder, geometry=fd.Geometry.CAFFE, weights=weights, onnx=fd.OnnxOptions(500, 500),
        optimize=fd.Optimize.NONE, verify=False,
    )  # fmt: skip
    with fd.Server(fd.export(options).path, replace(OPTIONS, name="shapes", max_photo_mb=1)) as started:
        yield started


@pytest.fixture
def page(sample_server: fd.Server, tmp_path: Path) -> Iterator[Page]:
    with browser(tmp_path / "profile") as opened:
        opened.resize(1100, 900)
        opened.open(f"{sample_server.listening.http_url}/")
        yield opened
        assert opened.complaints == []


OPACITY = "document.getElementById('opacity')"
SHOWN = "!document.getElementById('result').hidden"
LEGEND = "[...document.querySelectorAll('#legend tr')].map(row => row.innerText.split('\\t').map(t => t.trim()))"


@needs_browser
def test_a_photo_is_shown_with_its_labels_over_it(page: Page, sample_server: fd.Server) -> None:
    page.wait_for("document.getElementById('name').textContent === 'shapes'")
    assert page.value("document.getElementById('untrained').hidden") is True
    page.choose("#file", fd.SAMPLE_SCENE)
    page.wait_for(SHOWN)

    answer = call(sample_server, "/segment", fd.SAMPLE_SCENE.read_bytes())[1]
    assert page.value(LEGEND) == [[c["name"], f"{c['share'] * 100:.1f} %"] for c in answer["classes"]]
    assert "scene.jpg: 500 × 500 pixels, 7 classes." in page.value("document.getElementById('status').textContent")
    # What is on the screen is the photo and its labels' colours, blended by the slider.
    box = page.value(
        "(b => [b.x + scrollX, b.y + scrollY, b.width])(document.getElementById('photo').getBoundingClientRect())"
    )
    colours = Image.open(io.BytesIO(base64.b64decode(answer["labels_png"]))).convert("RGB")
    photo = Image.open(fd.SAMPLE_SCENE).convert("RGB")
    for percent in (100, 55, 0):
        page.value(f"{OPACITY}.value = {percent}; {OPACITY}.dispatchEvent(new Event('input'))")
        shown = np.array(Image.open(io.BytesIO(page.screenshot())).convert("RGB"), dtype=int)
        left, top, side = (round(n) for n in box)
        truth = Image.blend(photo, colours, percent / 100).resize((side, side), Image.Resampling.BILINEAR)
        difference = np.abs(shown[top : top + side, left : left + side] - np.array(truth, dtype=int))
        assert np.median(difference) <= 4
        assert page.value("document.getElementById('opacity-value').textContent") == f"{percent} %"


@needs_browser
def test_a_photo_is_dropped_anywhere(page: Page) -> None:
    encoded = base64.b64encode(fd.SAMPLE_SCENE.read_bytes()).decode()
    page.value(f"""(dropped => {{
        const bytes = Uint8Array.from(atob("{encoded}"), c => c.charCodeAt(0));
        dropped.items.add(new File([bytes], "dropped.jpg"));
        document.body.dispatchEvent(
            new DragEvent("drop", {{ dataTransfer: dropped, bubbles: true, cancelable: true }}));
    }})(new DataTransfer())""")
    page.wait_for(SHOWN)

    assert "dropped.jpg: 500 × 500 pixels" in page.value("document.getElementById('status').textContent")


@needs_browser
def test_what_cannot_be_labelled_is_said_and_the_next_photo_works(page: Page, tmp_path: Path) -> None:
    (tmp_path / "notes.jpg").write_text("hello")
    (tmp_path / "large.jpg").write_bytes(bytes(1_500_000))
    error = "document.getElementById('error').textContent"

    page.choose("#file", tmp_path / "notes.jpg")
    page.wait_for(f"{error} === 'Image you sent (5 bytes): unknown image format. Use a PNG or JPEG file.'")
    # The browser reports the 400 itself, as any failed request.
    assert [json.loads(text)["entry"]["source"] for text in page.complaints] == ["network"]
    page.complaints.clear()
    page.choose("#file", tmp_path / "large.jpg")
    page.wait_for(f"{error} === 'large.jpg has 1.5 MB; at most 1 MB are taken.'")
    assert page.value(SHOWN) is False
    page.choose("#file", fd.SAMPLE_SCENE)
    page.wait_for(SHOWN)
    assert page.value(error) == ""


@needs_browser
def test_a_photo_that_the_browser_cannot_show_has_its_labels_shown(page: Page, tmp_path: Path) -> None:
    Image.open(fd.SAMPLE_SCENE).save(tmp_path / "scene.tiff", compression="tiff_lzw")
    page.choose("#file", tmp_path / "scene.tiff")
    page.wait_for(SHOWN)

    assert page.value("document.getElementById('photo').hidden") is True
    assert page.value("document.getElementById('no-photo').hidden") is False
    assert page.value("document.getElementById('labels').naturalWidth") == 500


@needs_browser
def test_it_works_with_the_keyboard_and_on_narrow_screens(page: Page) -> None:
    page.choose("#file", fd.SAMPLE_SCENE)
    page.wait_for(SHOWN)
    page.value("document.activeElement.blur()")
    reached = []
    for _ in range(2):
        page.press("Tab", 9)
        reached.append(page.value("document.activeElement.id"))
    assert reached == ["file", "opacity"]
    page.press("ArrowRight", 39)
    assert page.value("document.getElementById('labels').style.opacity") == "0.56"

    page.resize(320, 700, dark=True)
    assert page.value("document.documentElement.scrollWidth <= innerWidth") is True
    assert page.value("getComputedStyle(document.body).backgroundColor") == "rgb(21, 24, 27)"
