"""Both layouts are found, and what is missing is named, all of it, before anything runs."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcn_deploy as fd
from benchmarks.train_sample import Split, scene
from tests.datasets import make_folders, make_voc, save_labels
from tests.messages import missing, states


def names(dataset: fd.Dataset) -> list[str]:
    return [pair.name for pair in dataset.pairs]


def test_pascal_voc_in_the_order_of_its_split(tmp_path: Path) -> None:
    root = make_voc(tmp_path / "VOC2012", {"val": ("b", "a"), "train": ("c",)})

    found = fd.find_dataset(root)

    assert names(found) == ["b", "a"]
    assert found.pairs[0] == fd.Pair("b", root / "JPEGImages" / "b.jpg", root / "SegmentationClass" / "b.png")
    assert found.name == f"Pascal VOC {root}, split val"
    assert names(fd.find_dataset(root, "train")) == ["c"]


def test_names_with_spaces_and_windows_line_ends(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"val": ("one two", "three")})
    (root / "ImageSets" / "Segmentation" / "val.txt").write_bytes(b"one two\r\n\r\nthree")

    assert names(fd.find_dataset(root)) == ["one two", "three"]


def test_two_folders_in_the_order_of_names(tmp_path: Path) -> None:
    root = make_folders(tmp_path, 3)
    (root / "images" / "notes.txt").write_text("no image")

    found = fd.find_dataset(root)

    assert names(found) == ["000", "001", "002"]
    assert found.pairs[1] == fd.Pair("001", root / "images" / "001.png", root / "labels" / "001.png")
    assert names(found.first(2)) == ["000", "001"]
    assert found.first(None) == found


def test_two_folders_by_name_go_before_pascal_voc(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"val": ("a",)})
    (root / "SegmentationClass" / "a.png").rename(root / "SegmentationClass" / "a.PNG")

    found = fd.find_dataset(root, images="JPEGImages", labels="SegmentationClass")

    assert found.pairs == (fd.Pair("a", root / "JPEGImages" / "a.jpg", root / "SegmentationClass" / "a.PNG"),)


def test_every_missing_file_is_counted_and_the_first_ten_are_named(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"val": [f"{i:02}" for i in range(14)]})
    for i in range(12):
        (root / "SegmentationClass" / f"{i:02}.png").unlink()
    (root / "JPEGImages" / "00.jpg").unlink()

    with pytest.raises(fd.InputFileError) as caught:
        fd.find_dataset(root)

    lines = caught.value.problem.splitlines()
    assert lines[0] == f"13 files of split val are missing from {root}:"
    assert lines[1:4] == ["  JPEGImages/00.jpg", "  SegmentationClass/00.png", "  SegmentationClass/01.png"]
    assert lines[-1] == "  and 3 more"
    assert len(lines) == 12


def test_photos_without_labels_and_labels_without_photos(tmp_path: Path) -> None:
    root = make_folders(tmp_path, 4)
    (root / "labels" / "001.png").unlink()
    (root / "images" / "003.png").unlink()

    with pytest.raises(fd.InputFileError) as caught:
        fd.find_dataset(root)

    first, *lines = caught.value.problem.splitlines()
    assert missing(f"2 4 missing {root}", first) == []
    assert [line.strip() for line in lines] == ["labels/001.png", "images/003.*"]


def test_an_unknown_split_names_those_there_are(tmp_path: Path) -> None:
    root = make_voc(tmp_path, {"val": ("a",), "seg11valid": ("a",)})

    with pytest.raises(fd.InputFileError, check=states("split test", remedy="--split seg11valid val")):
        fd.find_dataset(root, "test")


@pytest.mark.parametrize(("content", "facts"), [
    (b"", "split val.txt empty"),
    (b"a\na\n", "val.txt 1 twice a"),
    (b"\xff\xfe\x00", "val.txt read 0xff"),
])  # fmt: skip
def test_splits_that_are_none(tmp_path: Path, content: bytes, facts: str) -> None:
    root = make_voc(tmp_path, {"val": ("a",)})
    (root / "ImageSets" / "Segmentation" / "val.txt").write_bytes(content)

    with pytest.raises(fd.InputFileError, check=states(facts)):
        fd.find_dataset(root)


def test_folders_that_hold_no_data_set(tmp_path: Path) -> None:
    make_voc(tmp_path / "kit" / "VOC2012", {"val": ("a",)})

    with pytest.raises(fd.InputFileError, check=states("nowhere folder")):
        fd.find_dataset(tmp_path / "nowhere")
    with pytest.raises(fd.InputFileError, check=states("kit neither JPEGImages images labels")) as caught:
        fd.find_dataset(tmp_path / "kit")
    assert str(tmp_path / "kit" / "VOC2012") in caught.value.remedy
    with pytest.raises(fd.InputFileError, check=states("labels folder")):
        fd.find_dataset(tmp_path / "kit", images="VOC2012")


def test_two_photos_of_one_name_are_refused(tmp_path: Path) -> None:
    root = make_folders(tmp_path, 2)
    Image.new("RGB", (5, 5)).save(root / "images" / "001.jpg")

    with pytest.raises(fd.InputFileError, check=states("1 twice images")) as caught:
        fd.find_dataset(root)
    assert caught.value.problem.endswith("\n  001")


def test_a_split_of_two_folders_is_refused(tmp_path: Path) -> None:
    with pytest.raises(fd.UsageError, check=states("val folders splits")):
        fd.find_dataset(make_folders(tmp_path, 1), "val")


def test_the_samples_labels_are_those_its_scene_was_made_with() -> None:
    """The scene is drawn again from its seed; JPEG loses a little, shifted or other shapes would differ by 30."""
    (pair,) = fd.sample_dataset().pairs
    made = scene(Split.HELD_OUT, 502, 500, 500)

    with Image.open(pair.photo) as photo, Image.open(pair.labels) as labels:
        assert labels.mode == "P"
        np.testing.assert_array_equal(np.array(labels), made.labels)
        assert np.abs(np.array(photo).astype(int) - made.pixels).mean() < 3


def test_results_of_predict_beside_the_photos_are_no_photos(tmp_path: Path) -> None:
    root = make_folders(tmp_path, 1)
    save_labels(np.zeros((4, 4)), root / "images" / "000.labels.png")

    assert names(fd.find_dataset(root)) == ["000"]
