"""Names and colours of labels from files, and the threshold of a single class."""

from pathlib import Path

import numpy as np
import pytest

import fcn_deploy as fd
from exporters.labels import LabelOptions
from fcn_deploy.model_info import ModelInfo, NetworkSpec, Provenance, voc_palette
from fcn_deploy.parity.compare import compare_labels, compare_logits
from fcn_deploy.runtime.base import labels_of
from tests.messages import states


def facts(classes: int) -> ModelInfo:
    return ModelInfo(NetworkSpec(fd.Variant.FCN32S, num_classes=classes), Provenance(rng_seed=0))


def file(folder: Path, text: str, encoding: str = "utf-8") -> Path:
    path = folder / "file.txt"
    path.write_bytes(text.encode(encoding))
    return path


def test_names_with_spaces_and_colours_come_back_from_metadata(tmp_path: Path) -> None:
    names = file(tmp_path, "road surface\r\n\n traffic light \nsky\n", "utf-8-sig")
    colours = tmp_path / "colours.txt"
    colours.write_text("#804080\nfaaa1e\n#4682B4\n", encoding="utf-8")

    found = LabelOptions(names, colours).apply(facts(3))
    again = ModelInfo.from_metadata(found.to_metadata(), "x")

    assert found.names == ("road surface", "traffic light", "sky")
    assert found.palette == ((128, 64, 128), (250, 170, 30), (70, 130, 180))
    assert again == found


def test_names_that_look_like_json_come_back(tmp_path: Path) -> None:
    found = LabelOptions(file(tmp_path, '["x\nb\n]')).apply(facts(3))

    assert ModelInfo.from_metadata(found.to_metadata(), "x").names == ('["x', "b", "]")


def test_without_files_they_are_those_of_before() -> None:
    assert LabelOptions().apply(facts(21)) == facts(21)
    assert ModelInfo.from_metadata(facts(21).to_metadata(), "x").colours == ()
    assert facts(5).palette == voc_palette(5)


@pytest.mark.parametrize(("text", "stated"), [
    ("a\nb\n", "file.txt 2 names 3 labels"),
    ("", "file.txt 0 names 3 labels"),
])  # fmt: skip
def test_names_of_another_number_are_refused(tmp_path: Path, text: str, stated: str) -> None:
    with pytest.raises(fd.InputFileError, check=states(stated)):
        LabelOptions(file(tmp_path, text)).apply(facts(3))


@pytest.mark.parametrize(("text", "stated"), [
    ("#000000\n#12345g\n#ffffff", "file.txt line 2 '#12345g'"),
    ("#000\n#111\n#222", "line 1 '#000'"),
])  # fmt: skip
def test_what_is_no_colour_is_named_with_its_line(tmp_path: Path, text: str, stated: str) -> None:
    with pytest.raises(fd.InputFileError, check=states(stated)):
        LabelOptions(palette=file(tmp_path, text)).apply(facts(3))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "binary.txt").write_bytes(b"\xff\xfe\x00")

    with pytest.raises(fd.InputFileError, check=states("none.txt")):
        LabelOptions(tmp_path / "none.txt").apply(facts(3))
    with pytest.raises(fd.InputFileError, check=states("binary.txt UTF-8")):
        LabelOptions(tmp_path / "binary.txt").apply(facts(3))


@pytest.mark.parametrize("threshold", [0.0, 1.0, -0.1, float("nan")])
def test_a_threshold_is_a_probability(threshold: float) -> None:
    with pytest.raises(fd.UsageError, check=states(f"threshold {threshold:g}", remedy="--threshold 0.5")):
        LabelOptions(threshold=threshold)


def test_a_threshold_is_for_a_single_class() -> None:
    with pytest.raises(fd.UsageError, check=states("threshold 0.3 5", remedy="--threshold")):
        LabelOptions(threshold=0.3).apply(facts(5))


def test_a_single_class_has_two_labels() -> None:
    info = LabelOptions(threshold=0.25).apply(facts(1))
    logits = np.array([-2, -1.2, -1, 0, 3], np.float32).reshape(1, 1, 1, 5)

    assert (info.num_labels, info.class_names) == (2, ("background", "foreground"))
    assert info.boundary == pytest.approx(np.log(1 / 3))
    assert labels_of({"logits": logits}, info.boundary).tolist() == [[[0, 0, 1, 1, 1]]]
    assert labels_of({"logits": logits}).tolist() == [[[0, 0, 0, 0, 1]]]
    assert (1 / (1 + np.exp(-logits)) > 0.25).astype(int)[0].tolist() == [[[0, 0, 1, 1, 1]]]


def test_flips_of_a_single_class_are_those_across_its_boundary() -> None:
    reference = np.array([-2, -1.2, -1, 0, 3], np.float32).reshape(1, 1, 1, 5)
    candidate = reference + np.array([0, 0.2, 0, -1.05, 0], np.float32).reshape(1, 1, 1, 5)

    found = compare_logits("x", reference, candidate, -1.0)

    # -1 itself is not above the boundary.
    assert (found.flips, found.largest_flip_margin) == (1, 1.0)
    assert found.intersections == (3, 1)
    assert found.unions == (4, 2)
    assert compare_labels("x", reference, np.array([[[0, 0, 0, 1, 1]]], np.uint8), -1.0).flips == 0
    with pytest.raises(fd.ParityError, check=states("largest label 1 2")):
        compare_labels("x", reference, np.array([[[0, 0, 0, 1, 2]]], np.uint8), -1.0)


@pytest.mark.parametrize("head", list(fd.Head))
def test_a_single_class_goes_through_to_labels(tmp_path: Path, head: fd.Head) -> None:
    options = fd.ExportOptions(
        fd.Variant.FCN32S, tmp_path / "bundle", num_classes=1, channel_divisor=16, onnx=fd.OnnxOptions(64, 64),
        head=head, labels=LabelOptions(threshold=0.4),
    )  # fmt: skip
    result = fd.export(options)
    photo = np.random.default_rng(1).integers(0, 256, (30, 40, 3), dtype=np.uint8)

    with fd.Segmenter(result.path) as segmenter:
        labels = segmenter.segment(photo)

    assert result.info.threshold == fd.open_bundle(result.path).info.threshold == 0.4
    assert result.parity is not None
    assert result.parity.passed
    assert fd.verify(result.path).parity.passed
    assert set(np.unique(labels)) <= {0, 1}


def test_both_heads_of_a_single_class_give_the_same_labels(tmp_path: Path) -> None:
    photo = np.random.default_rng(1).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    found = []
    for head in fd.Head:
        options = fd.ExportOptions(
            fd.Variant.FCN32S, tmp_path / head, num_classes=1, channel_divisor=16, onnx=fd.OnnxOptions(64, 64),
            head=head, labels=LabelOptions(threshold=0.4), verify=False,
        )  # fmt: skip
        with fd.Segmenter(fd.export(options).path) as segmenter:
            found.append(segmenter.segment(photo))

    assert np.array_equal(found[0], found[1])
    assert 0 < found[0].mean() < 1


@pytest.mark.parametrize("height", [1, 31, 32, 33, 100])
def test_the_first_of_equal_classes_wins_in_every_strip(height: int) -> None:
    logits = np.random.default_rng(0).integers(0, 3, (2, 5, height, 7)).astype(np.float32)

    expected = [
        [[list(pixel).index(max(pixel)) for pixel in row] for row in one] for one in logits.transpose(0, 2, 3, 1)
    ]
    assert labels_of({"logits": logits}).tolist() == expected
