"""Scores of a whole data set: against labels made photo by photo, alone and beside PyTorch, resumed, and incomplete."""

import json
import os
import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from PIL import Image

import fcn_deploy as fd
from fcn_deploy.images import place
from fcn_deploy.models.weights import random_network
from fcn_deploy.runtime.eager import EagerRunner
from fcn_deploy.segmentation import Segmenter
from tests.conftest import narrow_options
from tests.datasets import NUM_CLASSES, make_folders, photo_of, save_labels, save_photo, truth_of
from tests.fcn_deploy.test_metrics import by_definition
from tests.messages import states

COUNT = 5


@pytest.fixture
def folders(tmp_path: Path) -> Path:
    return make_folders(tmp_path / "data", COUNT)


def run(bundle: Path, data: Path, **options: object) -> fd.Evaluation:
    """Into `evaluation` beside the data."""
    given = {"output": data.parent / "evaluation", "page": False} | options
    return fd.evaluate(bundle, fd.find_dataset(data), fd.EvaluateOptions(**given))  # type: ignore[arg-type]


def written(data: Path) -> dict[str, object]:
    document: dict[str, object] = json.loads((data.parent / "evaluation" / "evaluation.json").read_text())
    return document


def journal(data: Path) -> Path:
    return data.parent / "evaluation" / "journal.jsonl"


def truths(data: Path) -> list[np.ndarray]:
    return [np.array(Image.open(path)) for path in sorted((data / "labels").iterdir())]


def joined(maps: list[np.ndarray]) -> np.ndarray:
    return np.concatenate([labels.ravel() for labels in maps])


def assert_scores(scores: fd.Scores, truth: np.ndarray, labels: np.ndarray) -> None:
    for name, value in by_definition(truth, labels, NUM_CLASSES).items():
        np.testing.assert_array_equal(getattr(scores, name), value, err_msg=name)


def altered(bundle: Path, path: Path, factor: float) -> Path:
    """The bundle's model with the scores of class 3 multiplied."""
    model = onnx.load(bundle / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "upscore8/convolve/weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3 * 8 * 8 : 4 * 8 * 8] *= factor
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("keep_aspect", [False, True])
def test_the_scores_are_those_of_all_photos_at_once(shared_bundle: Path, folders: Path, keep_aspect: bool) -> None:
    """Labels of `Segmenter.segment`, each in its photo's size, and the definitions on all their pixels together."""
    photos = [np.array(Image.open(path)) for path in sorted((folders / "images").iterdir())]
    with Segmenter(shared_bundle) as segmenter:
        labels = [segmenter.segment(photo, keep_aspect=keep_aspect) for photo in photos]

    result = run(shared_bundle, folders, keep_aspect=keep_aspect)

    assert_scores(result.scores, joined(truths(folders)), joined(labels))
    for image, truth, found in zip(result.images, truths(folders), labels, strict=True):
        expected = by_definition(truth, found, NUM_CLASSES)
        assert (image.mean_iu, image.pixel_accuracy) == (expected["mean_iu"], expected["pixel_accuracy"])
    assert result.pixels == joined(labels).size
    assert result.void_share == pytest.approx((joined(truths(folders)) == 255).mean())
    assert (result.pytorch_scores, result.mean_iu_lost, result.failures) == (None, None, ())
    result.require()


def test_the_document_says_what_the_result_says(shared_bundle: Path, folders: Path) -> None:
    result = run(shared_bundle, folders)

    document = written(folders)

    assert document == json.loads(json.dumps(result.to_dict()))
    assert document["complete"] is True
    assert document["scores"]["mean_iu"] == result.scores.mean_iu  # type: ignore[index]
    ius = [None if np.isnan(iu) else iu for iu in result.scores.class_iu.tolist()]
    assert [row["iu"] for row in document["classes"]] == ius  # type: ignore[attr-defined]
    assert document["confusion"]["artifact"] == result.counts.artifact.tolist()  # type: ignore[index]


def test_a_batch_that_is_not_full_gives_the_same(shared_bundle: Path, folders: Path, tmp_path: Path) -> None:
    options = narrow_options(tmp_path / "three")
    three = fd.export(replace(options, onnx=replace(options.onnx, batch=3))).path

    one, many = (run(path, folders, output=tmp_path / f"scores-{path.name}") for path in (shared_bundle, three))

    assert [image.name for image in many.images] == [image.name for image in one.images]
    np.testing.assert_array_equal(one.counts.artifact, many.counts.artifact)


def test_beside_pytorch_an_equal_artifact_loses_nothing(shared_bundle: Path, folders: Path) -> None:
    result = run(shared_bundle, folders, against="pytorch")

    assert result.counts.both is not None
    assert result.agreement is not None
    assert int(np.trace(result.counts.both)) == result.pixels == int(result.counts.both.sum())
    assert (result.mean_iu_lost, result.agreement.mean_iu, result.agreement.pixel_accuracy) == (0, 1, 1)
    assert np.count_nonzero(result.counts.both) > 3, "several classes, or the equality says little"


def test_what_a_wrong_artifact_loses(shared_bundle: Path, folders: Path, tmp_path: Path) -> None:
    """One class is favoured in the file; PyTorch's labels are made here from the network itself."""
    path = altered(shared_bundle, tmp_path / "wrong.onnx", 1.6)
    info = fd.open_bundle(shared_bundle).info
    assert isinstance(info.network, fd.NetworkSpec)
    ours, theirs = [], []
    with (
        EagerRunner(random_network(info.network, 0), (1, 3, 96, 96)) as eager,
        Segmenter(path) as wrong,
    ):
        for file in sorted((folders / "images").iterdir()):
            photo = np.array(Image.open(file))
            canvas, placement = place(photo, np.zeros((96, 96, 3), np.uint8), keep_aspect=False)
            (logits,) = eager.run({"image": info.preprocessing.apply(canvas[None])}).values()
            theirs.append(placement.restore(logits[0].argmax(axis=0).astype(np.uint8)))
            ours.append(wrong.segment(photo))

    result = run(path, folders, against="pytorch")

    assert_scores(result.scores, joined(truths(folders)), joined(ours))
    assert result.pytorch_scores is not None
    assert result.agreement is not None
    assert_scores(result.pytorch_scores, joined(truths(folders)), joined(theirs))
    same = float((joined(ours) == joined(theirs)).mean())
    assert 0.05 < same < 0.99
    assert result.agreement.pixel_accuracy == same
    assert result.agreement.mean_iu == by_definition(joined(theirs), joined(ours), NUM_CLASSES)["mean_iu"]
    assert result.mean_iu_lost == result.pytorch_scores.mean_iu - result.scores.mean_iu != 0
    shares = [(a == b).mean() for a, b in zip(ours, theirs, strict=True)]
    assert [image.agreement for image in result.images] == shares
    assert written(folders)["mean_iu_lost"] == result.mean_iu_lost


def test_a_checkpoint_is_wanted_exactly_when_there_was_one(shared_bundle: Path, folders: Path) -> None:
    with pytest.raises(fd.UsageError, check=states("artifact exported without checkpoint")):
        run(shared_bundle, folders, against="pytorch", checkpoint=fd.SAMPLE_CHECKPOINT)
    with pytest.raises(fd.UsageError, check=states("sample.safetensors comparison PyTorch", remedy="--against")):
        run(shared_bundle, folders, checkpoint=fd.SAMPLE_CHECKPOINT)
    assert not (folders.parent / "evaluation").exists()


def test_an_interrupted_run_goes_on_to_the_same_result(shared_bundle: Path, folders: Path) -> None:
    whole = run(shared_bundle, folders, against="pytorch")
    lines = journal(folders).read_bytes().splitlines(keepends=True)
    journal(folders).write_bytes(b"".join(lines[:3]) + lines[3][:-20])

    resumed = run(shared_bundle, folders, against="pytorch")

    assert (whole.resumed, resumed.resumed, resumed.restart_reason) == (0, 2, "")
    assert replace(resumed, resumed=0).to_dict() == whole.to_dict()
    assert journal(folders).read_bytes() == b"".join(lines)


def tamper(data: Path, name: str) -> None:
    """Write into the journal that all 7 pixels of an image were of class 0 and labelled so."""
    lines = journal(data).read_text().splitlines()
    for number, line in enumerate(lines[1:], start=1):
        record = json.loads(line)
        if record["name"] == name:
            lines[number] = json.dumps(record | {"counts": {"artifact": [[0, 7]]}, "pixels": 7})
    journal(data).write_text("\n".join(lines) + "\n")


def test_what_is_finished_is_not_done_again_and_what_changed_is(shared_bundle: Path, folders: Path) -> None:
    whole = run(shared_bundle, folders)
    tamper(folders, "001")
    tamper(folders, "002")
    save_photo(photo_of(99, 44, 56), folders / "images" / "002.png")

    again = run(shared_bundle, folders)

    assert again.resumed == COUNT - 1
    assert again.images[1].mean_iu == 1, "taken from the journal"
    assert again.images[2].mean_iu not in (1, whole.images[2].mean_iu), "labelled again"
    assert [again.images[i] for i in (0, 3, 4)] == [whole.images[i] for i in (0, 3, 4)]

    save_labels(truth_of(77, 42, 56), folders / "labels" / "001.png")
    third = run(shared_bundle, folders)
    assert third.images[1].mean_iu < 1
    assert (third.resumed, third.images[2]) == (COUNT - 1, again.images[2])


@pytest.mark.parametrize("damage", [b"{}\n", b"null\n", b"\xff\n", b'{"name": 3}\n', b"[[[\n"])
def test_lines_that_are_no_records_are_cut_off(shared_bundle: Path, folders: Path, damage: bytes) -> None:
    whole = run(shared_bundle, folders)
    lines = journal(folders).read_bytes().splitlines(keepends=True)
    journal(folders).write_bytes(b"".join([*lines[:2], damage, *lines[2:]]))

    again = run(shared_bundle, folders)

    assert again.resumed == 1
    assert replace(again, resumed=0).to_dict() == whole.to_dict()


def test_a_journal_of_something_else_is_replaced(shared_bundle: Path, folders: Path, tmp_path: Path) -> None:
    other = altered(shared_bundle, tmp_path / "other.onnx", 0.9)
    run(shared_bundle, folders)

    again = run(shared_bundle, folders, keep_aspect=True)
    assert (again.restart_reason, again.resumed) == ("another fitting", 0)
    again = run(other, folders, keep_aspect=True)
    assert (again.restart_reason, again.resumed) == ("another artifact", 0)
    again = run(other, folders, keep_aspect=True, against="pytorch")
    assert (again.restart_reason, again.resumed) == ("another reference", 0)
    moved = folders.rename(tmp_path / "moved")
    again = run(other, moved, keep_aspect=True, against="pytorch")
    assert (again.restart_reason, again.resumed) == ("another data set", 0)
    assert len(journal(moved).read_text().splitlines()) == 1 + COUNT


def test_a_journal_of_another_version_is_replaced(shared_bundle: Path, folders: Path) -> None:
    whole = run(shared_bundle, folders)
    text = journal(folders).read_text()
    journal(folders).write_text(text.replace(f'"version": "{fd.__version__}"', '"version": "0.0.0"', 1))

    again = run(shared_bundle, folders)

    assert (again.restart_reason, again.resumed) == ("another version", 0)
    assert journal(folders).read_text() == text
    assert replace(again, restart_reason="").to_dict() == whole.to_dict()


def test_a_few_first_and_the_rest_later(shared_bundle: Path, folders: Path) -> None:
    first = run(shared_bundle, folders, limit=2)
    rest = run(shared_bundle, folders)

    assert [image.name for image in first.images] == ["000", "001"]
    assert (rest.resumed, len(rest.images)) == (2, COUNT)
    assert rest.images[:2] == first.images


def test_images_that_cannot_be_scored_are_listed_and_the_rest_is_scored(shared_bundle: Path, folders: Path) -> None:
    whole = run(shared_bundle, folders, output=folders.parent / "whole")
    (folders / "images" / "000.png").write_bytes(b"no image")
    save_labels(np.zeros((10, 10)), folders / "labels" / "002.png")
    save_labels(np.full((46, 56), 21), folders / "labels" / "003.png")

    result = run(shared_bundle, folders)

    assert [failure.name for failure in result.failures] == ["000", "002", "003"]
    assert result.images == (whole.images[1], whole.images[4])
    document = written(folders)
    assert document["complete"] is False
    assert [row["name"] for row in document["failures"]] == ["000", "002", "003"]  # type: ignore[attr-defined]
    with pytest.raises(fd.InputFileError) as caught:
        result.require()
    lines = caught.value.problem.splitlines()
    assert lines[0] == "3 of 5 images have no score, so the scores are incomplete:"
    assert "000.png (8 bytes): unknown image format" in lines[1]
    assert "002.png are 10x10 pixels, their photo is 56x44" in lines[2]
    assert "003.png have value 21 in 2576 pixels; the model has 21 classes" in lines[3]

    save_labels(truth_of(3, 46, 56), folders / "labels" / "003.png")
    mended = run(shared_bundle, folders)
    assert (len(mended.failures), len(mended.images), mended.resumed) == (2, 3, 2)


def test_a_photo_that_exif_turns_is_compared_as_it_is_shown(shared_bundle: Path, folders: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by a quarter
    save_photo(photo_of(0, 40, 56), folders / "images" / "000.png", exif=exif)

    assert "labels/000.png are 56x40 pixels, their photo is 40x56" in run(shared_bundle, folders).failures[
        0
    ].error.problem.replace("\\", "/")

    save_labels(truth_of(0, 56, 40), folders / "labels" / "000.png")
    assert run(shared_bundle, folders).failures == ()


def test_an_image_that_is_all_void_has_no_score_of_its_own(shared_bundle: Path, folders: Path) -> None:
    save_labels(np.full((40, 56), 255), folders / "labels" / "000.png")

    result = run(shared_bundle, folders)

    assert np.isnan(result.images[0].mean_iu)
    assert written(folders)["images"][0]["mean_iu"] is None  # type: ignore[index]
    assert [image.name for image in result.worst(10)] == sorted(
        ("001", "002", "003", "004"), key=lambda name: result.images[int(name)].mean_iu
    )


def test_a_folder_of_something_else_is_left_alone(shared_bundle: Path, folders: Path, tmp_path: Path) -> None:
    with pytest.raises(fd.OutputError, check=states("data contains images no journal.jsonl")):
        run(shared_bundle, folders, output=folders)
    (tmp_path / "evaluation").mkdir()
    journal(folders).write_text("my diary\n")
    with pytest.raises(fd.OutputError, match=r"journal\.jsonl is not .*journal"):
        run(shared_bundle, folders)
    assert journal(folders).read_text() == "my diary\n"


@pytest.mark.parametrize(("options", "facts"), [
    ({"worst": -1}, "-1 0 100"),
    ({"worst": 101}, "101 0 100"),
    ({"limit": 0}, "limit 0 1"),
])  # fmt: skip
def test_options_out_of_bounds(options: dict[str, int], facts: str) -> None:
    with pytest.raises(fd.UsageError, check=states(facts)):
        fd.EvaluateOptions(**options)  # type: ignore[arg-type]


def peak(bundle: Path, data: Path) -> int:
    tracemalloc.start()
    run(bundle, data, output=data / "evaluation")
    found = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return found


def test_memory_does_not_grow_with_the_photos(shared_bundle: Path, tmp_path: Path) -> None:
    """Of 12 photos a few are held at a time, of 48 no more; each takes 1.2 MB, decoded and fitted."""
    few, many = tmp_path / "few", tmp_path / "many"
    for folder, count in ((few, 12), (many, 48)):
        for i in range(count):
            save_photo(photo_of(i, 500, 600), folder / "images" / f"{i}.jpg")
            save_labels(truth_of(i, 500, 600), folder / "labels" / f"{i}.png")
    run(shared_bundle, few, output=tmp_path / "warm", limit=1)

    growth = peak(shared_bundle, many) - peak(shared_bundle, few)

    assert growth < 3_000_000


def test_names_with_bytes_that_are_no_utf_8_are_scored_and_resumed(shared_bundle: Path, tmp_path: Path) -> None:
    data = make_folders(tmp_path / os.fsdecode(b"daten-\xe4"), 2)
    for path in sorted(data.glob("*/000.*")):
        path.rename(path.with_name(os.fsdecode(b"foto-\xff") + path.suffix))

    whole = run(shared_bundle, data, page=True)
    again = run(shared_bundle, data, page=True)

    assert os.fsdecode(b"foto-\xff") in {image.name for image in whole.images}
    assert (again.resumed, again.restart_reason) == (2, "")
    assert replace(again, resumed=0).to_dict() == whole.to_dict()
