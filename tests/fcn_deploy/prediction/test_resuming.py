"""Finished work is recognised by content, wherever a run was interrupted."""

import itertools
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from pyarrow import parquet

import fcn_deploy as fd
from fcn_deploy.prediction import sinks
from fcn_deploy.storage import sole_writer
from tests.conftest import Once, narrow_options
from tests.messages import states
from tests.processes import started

FORMATS = list(fd.OutputFormat)


@pytest.fixture(scope="module")
def other_bundle(once: Once) -> Path:
    def fill(folder: Path) -> None:
        fd.export(replace(narrow_options(folder / "bundle", fd.Variant.FCN32S), verify=False))

    return once("other", fill) / "bundle"


def run(
    bundle: Path, photos: list[Path], output: Path, fmt: fd.OutputFormat, *, padded: bool = False
) -> list[fd.Prediction]:
    options = fd.PredictOptions(output, keep_aspect=padded, output_format=fmt)
    return list(fd.predict(bundle, photos, options))


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def before(predictions: list[fd.Prediction]) -> list[bool]:
    return [p.done_before for p in predictions]


@pytest.mark.parametrize("fmt", FORMATS)
def test_a_finished_photo_is_not_done_twice(
    shared_bundle: Path, photos: list[Path], tmp_path: Path, fmt: fd.OutputFormat
) -> None:
    out = tmp_path / "out"
    first = run(shared_bundle, photos[:5], out, fmt)
    written = content(out)

    again = run(shared_bundle, photos, out, fmt)

    assert before(first) == [False] * 5
    assert before(again) == [True] * 5 + [False] * 7
    assert {name: data for name, data in content(out).items() if name in written} == written
    assert [p.inference_ms is None for p in again] == [True] * 5 + [False] * 7
    assert before(run(shared_bundle, photos, out, fmt)) == [True] * 12


@pytest.mark.parametrize("fmt", FORMATS)
def test_another_photo_under_an_old_name_is_done_anew(
    shared_bundle: Path, photos: list[Path], tmp_path: Path, fmt: fd.OutputFormat
) -> None:
    out, fresh = tmp_path / "out", tmp_path / "fresh"
    run(shared_bundle, photos[:3], out, fmt)
    photos[1].write_bytes(photos[7].read_bytes())

    again = run(shared_bundle, photos[:3], out, fmt)

    assert before(again) == [True, False, True]
    run(shared_bundle, photos[:3], fresh, fmt)
    assert labels(out, fmt) == labels(fresh, fmt)


def labels(folder: Path, fmt: fd.OutputFormat) -> list[tuple[str, bytes]]:
    if fmt is fd.OutputFormat.PARQUET:
        rows = parquet.read_table(folder, columns=["image", "key", "labels_png"]).to_pylist()
        return sorted((row["image"], row["key"].encode() + row["labels_png"]) for row in rows)
    return sorted(content(folder).items())


@pytest.mark.parametrize("fmt", FORMATS)
def test_other_options_and_other_models_are_done_anew(
    shared_bundle: Path, other_bundle: Path, photos: list[Path], tmp_path: Path, fmt: fd.OutputFormat
) -> None:
    run(shared_bundle, photos[:2], tmp_path / "out", fmt)

    assert before(run(shared_bundle, photos[:2], tmp_path / "out", fmt, padded=True)) == [False, False]
    assert before(run(other_bundle, photos[:2], tmp_path / "out", fmt)) == [False, False]


@pytest.mark.parametrize("damage", [b"", b"\x89PNG\r\n\x1a\nnot a picture", b"text"])
@pytest.mark.parametrize("fmt", [fd.OutputFormat.PNG, fd.OutputFormat.NPZ, fd.OutputFormat.RLE_JSON])
def test_a_result_without_its_key_is_kept_until_told(
    shared_bundle: Path, photos: list[Path], tmp_path: Path, fmt: fd.OutputFormat, damage: bytes
) -> None:
    out = tmp_path / "out"
    (first,) = run(shared_bundle, photos[:1], out, fmt)
    whole = content(out)
    Path(first.files[-1]).write_bytes(damage)

    (kept,) = run(shared_bundle, photos[:1], out, fmt)
    assert isinstance(kept.failure, fd.OutputError)
    assert Path(first.files[-1]).read_bytes() == damage

    (replaced,) = fd.predict(shared_bundle, photos[:1], fd.PredictOptions(out, output_format=fmt, force=True))
    assert replaced.failure is None
    assert content(out) == whole


def test_an_overlay_that_is_gone_is_made_again(shared_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    (first,) = run(shared_bundle, photos[:1], tmp_path / "out", fd.OutputFormat.PNG)
    whole = content(tmp_path / "out")
    assert first.overlay_path is not None
    first.overlay_path.unlink()

    assert before(run(shared_bundle, photos[:1], tmp_path / "out", fd.OutputFormat.PNG)) == [False]
    assert content(tmp_path / "out") == whole


def test_a_damaged_table_is_refused(shared_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "part-0123.parquet").write_bytes(b"no table")

    with pytest.raises(fd.OutputError, check=states("part-0123.parquet table")):
        run(shared_bundle, photos[:1], out, fd.OutputFormat.PARQUET)


def test_a_table_of_others_is_refused(shared_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    parquet.write_table(pa.table({"image": ["a.png"], "labels": [1]}), out / "part-0123.parquet")

    with pytest.raises(fd.OutputError, check=states("part-0123.parquet table no column 'key'")):
        run(shared_bundle, photos[:1], out, fd.OutputFormat.PARQUET)


def test_reading_tables_starts_no_thread_that_could_abort_the_process_at_its_end(
    shared_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    run(shared_bundle, photos[:2], tmp_path / "out", fd.OutputFormat.PARQUET)
    code = (
        "import sys, psutil, pyarrow.parquet; from pathlib import Path\n"
        "from fcn_deploy.prediction.sinks import _index; from fcn_deploy.prediction.store import open_store\n"
        "store = open_store(Path(sys.argv[1])); store.names('')\n"  # starts fsspec's own
        "before = psutil.Process().num_threads()\n"
        "print(len(_index(store)), psutil.Process().num_threads() - before)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, tmp_path / "out"], capture_output=True, text=True, check=True, timeout=60
    )

    assert done.stdout.split() == ["2", "0"]


def test_rows_that_a_killed_run_left_twice_are_settled_by_content(
    shared_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    out, old, fmt = tmp_path / "out", tmp_path / "old", fd.OutputFormat.PARQUET
    run(shared_bundle, photos[:3], old, fmt)
    photos[1].write_bytes(photos[7].read_bytes())
    run(shared_bundle, photos[:2], out, fmt)
    (part,) = old.iterdir()
    (out / part.name).write_bytes(part.read_bytes())

    assert before(run(shared_bundle, photos[:3], out, fmt)) == [True] * 3
    run(shared_bundle, photos[:3], tmp_path / "fresh", fmt)
    assert labels(out, fmt) == labels(tmp_path / "fresh", fmt)


def test_many_parts(shared_bundle: Path, photos: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sinks.TableSink, "rows_per_write", 5)
    (tmp_path / "bad.png").write_text("no image")
    given = [*photos[:6], tmp_path / "bad.png", *photos[6:]]

    found = run(shared_bundle, given, tmp_path / "out", fd.OutputFormat.PARQUET)

    assert [p.image for p in found] == given
    sizes = [parquet.read_metadata(p).num_rows for p in (tmp_path / "out").glob("*.parquet")]
    assert sorted(sizes) == [2, 5, 5]


def test_a_run_that_is_killed_goes_on_and_leaves_no_partial_file(
    shared_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-u", "-m", "fcn_deploy", "predict", shared_bundle, *photos, "--output", out]
    with started(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        shown = list(itertools.islice(process.stdout, 2))
        os.kill(process.pid, signal.SIGKILL)
    done = {line.split(" -> ")[0] for line in shown}

    again = run(shared_bundle, photos, out, fd.OutputFormat.PNG)

    assert done <= {str(p.image) for p in again if p.done_before}
    run(shared_bundle, photos, tmp_path / "fresh", fd.OutputFormat.PNG)
    assert content(out) == content(tmp_path / "fresh")


def test_a_second_run_into_one_folder_is_refused(shared_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    with sole_writer(tmp_path / "out"), pytest.raises(fd.OutputError) as caught:
        run(shared_bundle, photos, tmp_path / "out", fd.OutputFormat.PNG)

    assert str(tmp_path / "out") in caught.value.problem
    assert "--output" in caught.value.remedy
    assert not list((tmp_path / "out").iterdir())
    assert len(run(shared_bundle, photos, tmp_path / "out", fd.OutputFormat.PNG)) == 12


@pytest.mark.skipif(sys.platform == "win32", reason="needs a limit on file sizes")
def test_a_full_disk_ends_the_run_and_leaves_whole_files(shared_bundle: Path, tmp_path: Path) -> None:
    """A limit on the size of files stands in for a full disk: writing fails in the middle of a file."""
    noise = np.random.default_rng(0).integers(0, 256, (12, 300, 300, 3), dtype=np.uint8)
    for i, pixels in enumerate(noise):
        Image.fromarray(np.kron(pixels[:2, :2], np.ones((8, 8, 1), np.uint8)) if i < 3 else pixels).save(
            tmp_path / f"{i:02d}.png"
        )
    code = "import resource, sys; resource.setrlimit(resource.RLIMIT_FSIZE, (60_000, 60_000)); "
    code += "from fcn_deploy.cli.app import main; main()"
    command = [
        sys.executable,
        "-c",
        code,
        "predict",
        str(shared_bundle),
        str(tmp_path),
        "--output",
        str(tmp_path / "out"),
    ]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=100)

    assert done.returncode == 3
    assert str(tmp_path / "out") in done.stderr
    assert "--output" in done.stderr
    found = sorted((tmp_path / "out").iterdir())
    assert [p.name for p in found[:6]] == [f"{i:02d}.{kind}.png" for i in range(3) for kind in ("labels", "overlay")]
    for path in found:
        Image.open(path).load()


def test_failures_are_listed_until_they_are_gone(shared_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    bad = tmp_path / "bad.png"
    bad.write_text("no image")
    run(shared_bundle, [photos[0], bad, tmp_path / "none.png"], tmp_path / "out", fd.OutputFormat.NPZ)

    lines = (tmp_path / "out" / "failures.jsonl").read_text().splitlines()
    assert [line.split('"problem"')[0] for line in lines] == [
        f'{{"image": "{bad}", ', f'{{"image": "{tmp_path / "none.png"}", ',
    ]  # fmt: skip
    assert "unknown image format" in lines[0]
    assert "Check the path." in lines[1]
    run(shared_bundle, photos[:1], tmp_path / "out", fd.OutputFormat.NPZ)
    assert not (tmp_path / "out" / "failures.jsonl").exists()
