"""The page: what it shows, that it needs nothing from anywhere, and that names cannot become markup."""

import base64
import importlib.util
import io
import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcn_deploy as fd
from tests.datasets import VOID, make_folders, photo_of, save_labels, save_photo

AWKWARD = "<b>&'\"{{ 7 * 7 }}"


class Parsed(HTMLParser):
    """Images, captions, headings and cells of a page; every tag has to be closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.images: list[dict[str, str]] = []
        self.texts: dict[str, list[str]] = {}
        self.links: list[str] = []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        found = {name: value or "" for name, value in attributes}
        self.links += [found[name] for name in ("src", "href") if name in found]
        if tag == "img":
            self.images.append(found)
        if tag not in ("img", "meta"):
            self.open.append(tag)
            self.texts.setdefault(tag, []).append("")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open:
            self.texts[self.open[-1]][-1] += data


def evaluated(bundle: Path, data: Path, **options: object) -> fd.Evaluation:
    given = fd.EvaluateOptions(output=data / "evaluation", **options)  # type: ignore[arg-type]
    return fd.evaluate(bundle, fd.find_dataset(data), given)


def parsed(data: Path) -> Parsed:
    return Parsed((data / "evaluation" / "index.html").read_text(encoding="utf-8"))


def decoded(image: dict[str, str]) -> np.ndarray:
    return np.array(Image.open(io.BytesIO(base64.b64decode(image["src"].partition(",")[2]))))


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return make_folders(tmp_path / "data", 4)


def test_the_worst_images_side_by_side(shared_bundle: Path, folders: Path) -> None:
    result = evaluated(shared_bundle, folders, against=fd.Against.PYTORCH, worst=3)

    page = parsed(folders)

    captions = ["photo", "truth", "PyTorch", "artifact"]
    assert page.texts["figcaption"] == captions * 3
    worst = [image.name for image in result.worst(3)]
    assert [image["alt"] for image in page.images] == [f"{c} of {name}" for name in worst for c in captions]
    assert [heading.split(":")[0] for heading in page.texts["h3"]] == [f"{i}. {n}" for i, n in enumerate(worst, 1)]
    for image, heading in zip(result.worst(3), page.texts["h3"], strict=True):
        assert f"mean IU {image.mean_iu:.4f}" in heading
    sizes = [decoded(image).shape for image in page.images]
    assert sizes == [size for size in sizes[::4] for _ in captions]
    assert len(set(sizes)) == 3


def test_label_maps_are_drawn_in_the_palettes_colours_and_void_in_stripes(shared_bundle: Path, tmp_path: Path) -> None:
    truth = np.repeat(np.array([[0, 1, 20, VOID]], np.uint8), 16, axis=1).repeat(32, axis=0)
    save_photo(photo_of(0, *truth.shape), tmp_path / "images" / "a.png")
    save_labels(truth, tmp_path / "labels" / "a.png")
    result = evaluated(shared_bundle, tmp_path)

    page = parsed(tmp_path)

    photo, shown, _ = (decoded(image) for image in page.images)
    assert np.abs(photo.astype(int) - photo_of(0, *truth.shape)).mean() < 8
    for label in (0, 1, 20):
        assert {tuple(c) for c in shown[truth == label].tolist()} == {result.info.palette[label]}
    void = shown[truth == VOID]
    assert {tuple(c) for c in void.tolist()} == {(255, 255, 255), (150, 150, 150)}
    assert 0.15 < (void == 150).mean() < 0.35
    assert page.texts["figcaption"] == ["photo", "truth", "artifact"]
    assert "void 25.00%" in [text.strip() for text in page.texts["li"]]


def test_figures_of_classes_and_bars_as_long_as_them(shared_bundle: Path, folders: Path) -> None:
    result = evaluated(shared_bundle, folders)

    text = (folders / "evaluation" / "index.html").read_text(encoding="utf-8")

    table = text.partition('<table id="classes">')[2].partition("</table>")[0]
    found = re.findall(r"</span>([^<]+)</td>.*?width: ([0-9.]+)%.*?<td>([0-9.]+)</td><td>([^<]+)</td>", table)
    expected = [c for c in result.classes if c.occurs]
    assert [name for name, *_ in found] == [c.name for c in expected]
    assert [float(width) for _, width, *_ in found] == [pytest.approx(100 * c.iu, abs=0.005) for c in expected]
    assert [iu for _, _, iu, _ in found] == [f"{c.iu:.4f}" for c in expected]
    assert f"Mean IU <b>{result.scores.mean_iu:.4f}</b>" in text
    assert "untrained" in text.lower()
    assert result.source.model_sha256 in text


def test_nothing_is_fetched_and_names_are_no_markup(shared_bundle: Path, folders: Path) -> None:
    for kind in ("images", "labels"):
        (folders / kind / "000.png").rename(folders / kind / f"{AWKWARD}.png")
    (folders / "labels" / "001.png").write_bytes(b"none")

    evaluated(shared_bundle, folders)

    page = parsed(folders)
    assert "b" not in page.texts or AWKWARD not in "".join(page.texts["b"])
    assert f"artifact of {AWKWARD}" in [image["alt"] for image in page.images]
    assert any(AWKWARD in heading for heading in page.texts["h3"])
    assert all(link.startswith("data:image/") for link in page.links)
    assert "http" not in (folders / "evaluation" / "index.html").read_text(encoding="utf-8")
    assert any("labels" in item and "4 bytes" in item and "PNG" in item for item in page.texts["li"])
    assert any("1 of 4" in text for text in page.texts["p"])


def test_large_photos_are_drawn_small(shared_bundle: Path, tmp_path: Path) -> None:
    save_photo(photo_of(0, 700, 1400), tmp_path / "images" / "a.jpg")
    save_labels(np.zeros((700, 1400)), tmp_path / "labels" / "a.png")

    evaluated(shared_bundle, tmp_path)

    assert [decoded(image).shape for image in parsed(tmp_path).images] == [(240, 480, 3)] * 3
    assert (tmp_path / "evaluation" / "index.html").stat().st_size < 100_000


def test_without_jinja(shared_bundle: Path, folders: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    evaluated(shared_bundle, folders)
    assert (folders / "evaluation" / "index.html").is_file()
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name, *a: None if name == "jinja2" else real(name, *a))

    with pytest.raises(fd.UsageError, match="jinja2") as caught:
        evaluated(shared_bundle, folders, page=True)
    assert "fcn-deploy[report]" in caught.value.remedy
    assert (folders / "evaluation" / "index.html").is_file()

    evaluated(shared_bundle, folders, keep_aspect=True)
    assert sorted(p.name for p in (folders / "evaluation").iterdir()) == ["evaluation.json", "journal.jsonl"]
