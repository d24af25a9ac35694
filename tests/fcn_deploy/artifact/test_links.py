"""Bundles whose files are links, as in Hugging Face's cache (symbolic) and DVC's (symbolic or hard)."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest

import fcn_deploy as fd
from benchmarks.engine.workspace import prepare, workspace_of
from fcn_deploy.artifact.bundle import MANIFEST_FILE, MODEL_FILE, write_manifest
from fcn_deploy.images import SAMPLE_PHOTO, read_image
from fcn_deploy.onnx_file import read_model, write_model
from tests.conftest import Call
from tests.messages import states


def file_links(bundle: Path) -> Path:
    """Every file is a link to a blob named after nothing, in another folder."""
    blobs = bundle.parent / "blobs"
    blobs.mkdir()
    for index, file in enumerate(sorted(path for path in bundle.rglob("*") if path.is_file())):
        file.rename(blobs / f"{index}")
        file.symlink_to(os.path.relpath(blobs / f"{index}", file.parent))
    return bundle


def folder_link(bundle: Path) -> Path:
    (bundle.parent / "link").symlink_to(bundle)
    return bundle.parent / "link"


def hard_links(bundle: Path) -> Path:
    cache = bundle.parent / "cache"
    cache.mkdir()
    for file in [path for path in bundle.rglob("*") if path.is_file()]:
        os.link(file, cache / file.name)
    return bundle


def links_to_hard_links(bundle: Path) -> Path:
    return file_links(hard_links(bundle))


KINDS = pytest.mark.parametrize("linked", [file_links, folder_link, hard_links, links_to_hard_links])


@pytest.fixture
def with_photo(bundle: Path) -> Path:
    """The narrow bundle with a calibration photo beside its model."""
    (bundle / "calibration").mkdir()
    shutil.copy(SAMPLE_PHOTO, bundle / "calibration" / "photo.jpg")
    manifest = json.loads((bundle / MANIFEST_FILE).read_text())
    write_manifest(bundle, {key: manifest[key] for key in ("model", "optimize", "parity")})
    return bundle


@KINDS
def test_every_command_works(
    with_photo: Path, linked: Callable[[Path], Path], photo: Path, call_cli: Call, tmp_path: Path
) -> None:
    with fd.Segmenter(with_photo) as plain:
        labels = plain.segment(read_image(photo))
    path = linked(with_photo)

    for arguments in (
        ("predict", path, photo, "--output", "labels"),
        ("predict", path / MODEL_FILE, photo, "--output", "labels-of-file"),
        ("verify", path),
        ("verify", path / MODEL_FILE),
        ("inspect", path),
        ("inspect", path / MODEL_FILE),
        ("optimize", path / MODEL_FILE, "fast.onnx"),
        ("package", path, "--output", "triton"),
        ("package", path, "--output", "python", "--backend", "python"),
        ("package", path / MODEL_FILE, "--output", "file", "--backend", "python"),
    ):
        code, output, errors = call_cli(*arguments)
        assert code == 0, (arguments, output, errors)

    with fd.Segmenter(path) as segmenter:
        assert np.array_equal(segmenter.segment(read_image(photo)), labels)
    assert not any(file.is_symlink() for file in tmp_path.glob("python/**/*"))


@KINDS
def test_the_workspace_of_a_benchmark(with_photo: Path, linked: Callable[[Path], Path], tmp_path: Path) -> None:
    workspace = workspace_of(fd.open_bundle(linked(with_photo)), tmp_path, fd.RebuildOptions())
    prepare(workspace, frozenset())

    assert [path.is_file() for path in (workspace.model_path, *workspace.photos)] == [True, True]
    assert np.load(tmp_path / "reference-0.npy").shape == (1, 21, 96, 96)


@pytest.mark.parametrize("link", [Path.symlink_to, Path.hardlink_to])
def test_weights_behind_a_link_are_mapped_not_copied(
    shared_bundle: Path, tmp_path: Path, link: Callable[[Path, Path], None]
) -> None:
    (tmp_path / "sub").mkdir()
    shutil.copy(shared_bundle / MODEL_FILE, tmp_path / "real.onnx")
    link(tmp_path / "sub" / "link.onnx", tmp_path / "real.onnx")

    model = read_model(tmp_path / "sub" / "link.onnx")
    write_model(model, tmp_path / "copy.onnx")

    weight = model.graph.initializers["fc6.weight"].const_value
    assert weight is not None
    array = weight.numpy()
    assert not array.flags.owndata
    expected = onnx.numpy_helper.to_array(
        next(t for t in onnx.load(shared_bundle / MODEL_FILE).graph.initializer if t.name == "fc6.weight")
    )
    assert np.array_equal(array, expected)
    assert onnx.load(tmp_path / "copy.onnx") == onnx.load(tmp_path / "real.onnx")


def with_data_beside(bundle: Path, folder: Path) -> Path:
    """A model of this toolkit whose weights another tool moved to a file of their own."""
    folder.mkdir()
    onnx.save(
        onnx.load(bundle / MODEL_FILE), folder / MODEL_FILE, save_as_external_data=True, location="data.bin",
        size_threshold=0,
    )  # fmt: skip
    return folder / MODEL_FILE


@pytest.mark.parametrize("apart", [False, True])
def test_a_model_and_its_data_file_may_both_be_links(
    shared_bundle: Path, photo: Path, tmp_path: Path, apart: bool
) -> None:
    """In a cache, both lie in one folder of blobs; `apart`, only the model is elsewhere."""
    path = with_data_beside(shared_bundle, tmp_path / "model")
    moved = [path] if apart else [path, path.with_name("data.bin")]
    (tmp_path / "blobs").mkdir()
    for index, file in enumerate(moved):
        file.rename(tmp_path / "blobs" / f"{index}")
        file.symlink_to(tmp_path / "blobs" / f"{index}")

    with fd.Segmenter(path) as linked, fd.Segmenter(shared_bundle) as plain:
        assert np.array_equal(linked.segment(read_image(photo)), plain.segment(read_image(photo)))


def test_a_link_out_of_the_folder_is_refused(shared_bundle: Path, tmp_path: Path) -> None:
    path = with_data_beside(shared_bundle, tmp_path / "model")
    (tmp_path / "model" / "data.bin").rename(tmp_path / "elsewhere")
    (tmp_path / "model" / "data.bin").symlink_to(tmp_path / "elsewhere")

    with pytest.raises(fd.BundleError, check=states(f"'conv1_1.weight' 'data.bin' {tmp_path / 'elsewhere'}")):
        fd.inspect(path)
