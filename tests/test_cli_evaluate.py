"""`evaluate` as a user meets it: the sample, bad input, interruptions, a full disk, two runs at once."""

import json
import resource
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcn_deploy as fd
from fcn_deploy.storage import sole_writer
from tests.conftest import Call, Run
from tests.datasets import make_folders, make_voc, save_labels
from tests.messages import missing
from tests.processes import started, wait_until

NAMES = ["evaluation.json", "index.html", "journal.jsonl"]


def test_the_sample_on_its_scene_beside_pytorch(call_cli: Call, tmp_path: Path) -> None:
    code, _, errors = call_cli(
        "export", "--variant", "8s", "--checkpoint", "sample", "--size", "224", "--no-verify", "--output", "b"
    )
    assert code == 0, errors

    code, output, errors = call_cli("evaluate", "b", "sample", "--against", "pytorch", "--checkpoint", "sample")

    assert code == 0, errors
    lines = output.splitlines()
    assert lines[0].startswith("ONNX Runtime ")
    assert lines[0].endswith(" CPU, the sample scene, images: 1")
    assert [line.split()[0] for line in lines[4:11]] == [
        "background", "disc", "square", "triangle", "star", "ring", "cross",
    ]  # fmt: skip
    assert missing("PyTorch 0.0000 100.000% 1.0000", output) == []
    assert "wrote evaluation" in output
    assert "images: 1" in errors
    document = json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())
    assert f"mean IU {document['scores']['mean_iu']:.4f}" in output
    assert document["scores"]["mean_iu"] > 0.35, "nothing but background has 0.115"
    shares = [row["truth_share"] for row in document["classes"]]
    assert shares == (np.bincount(np.array(Image.open(fd.SAMPLE_LABELS)).ravel()) / 250_000).tolist()
    assert sorted(p.name for p in (tmp_path / "evaluation").iterdir()) == NAMES

    code, output, _ = call_cli(
        "evaluate", "b", "sample", "--against", "pytorch", "--checkpoint", "sample", "--json", "--no-page"
    )
    assert json.loads(output) == document | {"resumed": 1}
    assert sorted(p.name for p in (tmp_path / "evaluation").iterdir()) == ["evaluation.json", "journal.jsonl"]


def test_pascal_voc_untrained(call_cli: Call, shared_bundle: Path, tmp_path: Path) -> None:
    make_voc(tmp_path / "VOC", {"val": ("a", "b"), "train": ("c",)})

    code, output, errors = call_cli("evaluate", shared_bundle, "VOC", "--split", "train", "--output", "out")

    assert code == 0, errors
    assert missing("VOC train 1", output) == []
    assert "untrained" in errors.splitlines()[-1]


def test_folders_by_other_names_and_another_option_starts_over(
    call_cli: Call, shared_bundle: Path, tmp_path: Path
) -> None:
    data = make_folders(tmp_path / "data", 2)
    (data / "images").rename(data / "photos")
    (data / "labels").rename(data / "truth")
    command = "evaluate", shared_bundle, "data", "--images", "photos", "--labels", "truth"

    assert call_cli(*command)[0] == 0
    code, output, errors = call_cli(*command)
    assert code == 0, errors
    assert "2 of 2" in output
    code, output, errors = call_cli(*command, "--keep-aspect")

    assert code == 0
    assert missing("evaluation fitting", errors) == []
    assert "2 of 2" not in output


@pytest.mark.parametrize(("arguments", "expected"), [
    (("nothing", "sample"), (3, "nothing neither bundle ONNX")),
    (("BUNDLE", "nowhere"), (3, "set nowhere folder")),
    (("BUNDLE", "./sample"), (3, "set sample folder")),
    (("BUNDLE", "data"), (3, "1 3 missing data labels/001.png")),
    (("BUNDLE", "data", "--split", "val"), (2, "val data folders splits")),
    (("BUNDLE", "empty"), (3, "empty neither JPEGImages images labels")),
    (("BUNDLE", "sample", "--split", "val"), (2, "sample single splits --split")),
    (("BUNDLE", "sample", "--limit", "0"), (2, "limit 0 1")),
    (("BUNDLE", "sample", "--worst", "1000"), (2, "1000 0 100")),
    (("BUNDLE", "sample", "--checkpoint", "sample"), (2, "checkpoint comparison PyTorch")),
    (("BUNDLE", "sample", "--against", "pytorch", "--checkpoint", "sample"), (2, "exported without checkpoint")),
    (("BUNDLE", "sample", "--against", "keras"), (2, "keras pytorch")),
    (("BUNDLE",), (2, "Missing argument 'DATASET'")),
    (("BUNDLE", "sample", "--output", "data"), (3, "data contains images no journal.jsonl")),
    (("BUNDLE", "sample", "--output", "/proc/nobody/writes/here"), (3, "cannot /proc/nobody/writes No such")),
])  # fmt: skip
def test_bad_input_has_its_exit_code_and_leaves_nothing(
    call_cli: Call, shared_bundle: Path, tmp_path: Path, arguments: tuple[str, ...], expected: tuple[int, str]
) -> None:
    make_folders(tmp_path / "data", 3)
    (tmp_path / "data" / "labels" / "001.png").unlink()
    (tmp_path / "empty").mkdir()

    found, output, errors = call_cli(
        "evaluate", *(shared_bundle if given == "BUNDLE" else given for given in arguments)
    )

    assert (found, output) == (expected[0], ""), errors
    assert missing(expected[1], errors) == []
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "empty"]


def test_bad_files_among_many_are_listed_after_the_scores_of_the_rest(
    call_cli: Call, shared_bundle: Path, tmp_path: Path
) -> None:
    data = make_folders(tmp_path / "data", 6)
    (data / "images" / "000.png").write_bytes(b"")
    Image.new("RGB", (56, 42)).save(data / "labels" / "001.png")
    save_labels(np.zeros((9, 9)), data / "labels" / "002.png")
    save_labels(np.full((46, 56), 254), data / "labels" / "003.png")

    code, output, errors = call_cli("evaluate", shared_bundle, "data")

    assert code == 3
    assert "2 of 6" in output
    assert "mean IU 0." in output
    first, *lines = errors[errors.index("error:") :].splitlines()
    assert missing("4 6", first) == []
    for line, facts in zip(lines[:4], (
        "data/images/000.png 0", "data/labels/001.png RGB", "data/labels/002.png 9x9 56x44",
        "data/labels/003.png 254 2576 21 20 255",
    ), strict=True):  # fmt: skip
        assert missing(facts, line) == []
    assert json.loads((tmp_path / "evaluation" / "evaluation.json").read_text())["complete"] is False


def test_two_runs_into_one_folder(call_cli: Call, shared_bundle: Path, tmp_path: Path) -> None:
    with sole_writer(tmp_path / "evaluation"):
        code, output, errors = call_cli("evaluate", shared_bundle, "sample")
        assert (code, output) == (3, "")
        assert "evaluation" in errors

    assert call_cli("evaluate", shared_bundle, "sample")[0] == 0


def limit_files() -> None:
    """As on a full disk, writing fails after so many bytes of a file."""
    resource.setrlimit(resource.RLIMIT_FSIZE, (2000, 2000))


def test_a_full_disk_leaves_the_old_result_whole(
    call_cli: Call, run_cli: Run, shared_bundle: Path, tmp_path: Path
) -> None:
    make_folders(tmp_path / "data", 6)
    assert call_cli("evaluate", shared_bundle, "data")[0] == 0
    before = {name: (tmp_path / "evaluation" / name).read_bytes() for name in NAMES}

    full = run_cli("evaluate", shared_bundle, "data", "--keep-aspect", preexec_fn=limit_files)

    assert full.returncode == 3, full.stderr
    assert "evaluation/journal.jsonl: File too large" in full.stderr
    assert "Traceback" not in full.stderr
    for name in ("evaluation.json", "index.html"):
        assert (tmp_path / "evaluation" / name).read_bytes() == before[name]
    assert (tmp_path / "evaluation" / "journal.jsonl").stat().st_size == 2000

    code, output, errors = call_cli("evaluate", shared_bundle, "data", "--keep-aspect", "--json")
    assert code == 0, errors
    assert 0 < json.loads(output)["resumed"] < 6


@pytest.mark.parametrize(("number", "code"), [(signal.SIGKILL, -9), (signal.SIGINT, 130)])
def test_an_interrupted_run_is_resumed_and_ends_the_same(
    call_cli: Call, shared_bundle: Path, tmp_path: Path, number: int, code: int
) -> None:
    """Killed when three images are written down; a run that was never interrupted is the reference."""
    make_folders(tmp_path / "data", 60)
    command = [sys.executable, "-m", "fcn_deploy", "evaluate", str(shared_bundle), "data", "--output", "out"]
    path = tmp_path / "out" / "journal.jsonl"

    def three_are_written() -> bool:
        assert process.poll() is None, "the run ended before it could be interrupted"
        return path.exists() and path.read_bytes().count(b"\n") >= 4

    with started(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(three_are_written, seconds=80, pause=0.002)
        process.send_signal(number)
        assert process.wait(30) == code
    assert not (tmp_path / "out" / "evaluation.json").exists()
    finished = path.read_bytes()[: path.read_bytes().rindex(b"\n") + 1]

    resumed = json.loads(call_cli("evaluate", shared_bundle, "data", "--output", "out", "--json", "--no-page")[1])
    whole = json.loads(call_cli("evaluate", shared_bundle, "data", "--output", "all", "--json", "--no-page")[1])

    assert resumed["resumed"] == finished.count(b"\n") - 1 >= 3
    assert path.read_bytes().startswith(finished)
    assert resumed | {"resumed": 0} == whole
