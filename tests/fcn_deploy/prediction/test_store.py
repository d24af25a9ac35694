"""Results at addresses that fsspec opens."""

import uuid
from pathlib import Path

import fsspec
import pytest

import fcn_deploy as fd
from fcn_deploy.prediction.store import Store
from tests.messages import states


@pytest.fixture
def address() -> str:
    return f"memory://{uuid.uuid4().hex}/labels"


@pytest.mark.parametrize("fmt", list(fd.OutputFormat))
def test_an_address_gets_the_same_bytes_as_a_directory(
    shared_bundle: Path, photos: list[Path], tmp_path: Path, address: str, fmt: fd.OutputFormat
) -> None:
    given = [*photos[:3], tmp_path / "none.png"]
    list(fd.predict(shared_bundle, given, fd.PredictOptions(tmp_path / "out", output_format=fmt)))

    found = list(fd.predict(shared_bundle, given, fd.PredictOptions(address, output_format=fmt)))

    memory = fsspec.filesystem("memory")
    stored = {path.rpartition("/")[2]: memory.cat_file(path) for path in memory.ls(address, detail=False)}
    assert stored == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert all(file.startswith(address) for p in found for file in p.files)
    again = fd.predict(shared_bundle, given, fd.PredictOptions(address, output_format=fmt))
    assert [p.done_before for p in again] == [True, True, True, False]


def test_a_file_address_is_a_directory(shared_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    list(fd.predict(shared_bundle, photos[:1], fd.PredictOptions(f"file://{tmp_path}/deep/out")))

    assert sorted(p.name for p in (tmp_path / "deep" / "out").iterdir()) == ["00.labels.png", "00.overlay.png"]


@pytest.mark.parametrize(("url", "problem"), [
    ("nonsense://labels", "output nonsense://labels cannot be opened: Protocol not known: nonsense"),
    ("s3://bucket/labels", "output s3://bucket/labels cannot be opened: Install s3fs to access S3"),
])  # fmt: skip
def test_addresses_that_cannot_be_opened(shared_bundle: Path, photos: list[Path], url: str, problem: str) -> None:
    with pytest.raises(fd.UsageError) as caught:
        list(fd.predict(shared_bundle, photos, fd.PredictOptions(url)))

    assert caught.value.problem == problem
    assert "s3fs" in caught.value.remedy


@pytest.mark.parametrize("url", ["dir:///tmp/labels", "reference://labels", "github://a/b", "::://", "://labels"])
def test_addresses_without_what_their_protocol_needs(
    shared_bundle: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(fd.UsageError, check=states(url, remedy="protocol fsspec")):
        list(fd.predict(shared_bundle, photos, fd.PredictOptions(url)))
    assert [path.name for path in tmp_path.iterdir()] == ["photo.png", "photos"]


def test_an_address_that_takes_no_files(shared_bundle: Path, photos: list[Path]) -> None:
    with pytest.raises(fd.OutputError, check=states("http://127.0.0.1:1/labels", remedy="address files")):
        list(fd.predict(shared_bundle, photos[:1], fd.PredictOptions("http://127.0.0.1:1/labels")))


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")

    with pytest.raises(fd.OutputError, match=r"cannot read or write file://.*below"):
        Store(f"file://{tmp_path}/file/below").write("a.png", b"data")


def test_what_is_not_there(address: str) -> None:
    store = Store(address)

    assert store.read("a.png") is None
    assert store.names(".png") == []
    store.remove("a.png")
