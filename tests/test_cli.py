"""The command line as a user meets it: each test runs the command in a process of its own."""

import json
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import fcn_deploy as fd
from fcn_deploy.runtime.ort import provider_problem
from tests.conftest import Call, Run
from tests.messages import missing
from tests.processes import started, wait_until

COMMANDS = (
    "export", "verify", "predict", "evaluate", "package", "serve", "tensorrt", "bench", "compare", "report", "inspect",
    "doctor",
)  # fmt: skip
NARROW = ("--channel-divisor", "16", "--size", "96")


def test_help_loads_neither_torch_nor_onnxruntime() -> None:
    code = "import sys; from fcn_deploy.cli import app; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60)

    assert not {"torch", "onnxruntime", "onnx", "numpy", "PIL"} & set(done.stdout.split())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_commands_help_ends_with_an_example(call_cli: Call, command: str) -> None:
    code, output, _ = call_cli(command, "--help")

    assert code == 0
    assert output.rstrip().splitlines()[-1].strip().startswith(f"Example: fcn-deploy {command}")


def test_main_help_lists_every_command_and_ends_with_an_example(run_cli: Run) -> None:
    done = run_cli("--help")

    assert all(command in done.stdout for command in COMMANDS)
    assert done.stdout.rstrip().endswith("Example: fcn-deploy export --variant 32s")


def test_version(call_cli: Call) -> None:
    assert call_cli("--version")[1] == f"{fd.__version__}\n"


def test_export_verify_predict_inspect(run_cli: Run, photo: Path, tmp_path: Path) -> None:
    exported = run_cli("export", "--variant", "8s", *NARROW)
    assert exported.returncode == 0, exported.stderr
    assert "passed  tier fp32" in exported.stdout
    assert missing("untrained 0", exported.stdout) == []
    assert missing("fcn8s fp32 1x3x96x96 logits", exported.stdout) == []
    assert "49 -> 46 nodes (Slice 6 -> 3)" in exported.stdout
    assert "export to ONNX, opset 18" in exported.stderr

    verified = run_cli("verify", "fcn8s", "--image", photo, "--samples", "2", "--exact")
    assert verified.returncode == 0, verified.stderr
    assert "noise 1" in verified.stdout
    assert "float64" in verified.stdout
    assert "CPUExecutionProvider" in verified.stdout

    predicted = run_cli("predict", "fcn8s", photo, "--output", "labels")
    assert predicted.returncode == 0, predicted.stderr
    assert predicted.stdout.startswith(f"{photo} -> labels/photo.overlay.png  ")
    assert "untrained" in predicted.stderr.splitlines()[-1]
    assert (tmp_path / "labels" / "photo.labels.png").is_file()

    inspected = run_cli("inspect", "fcn8s")
    assert inspected.returncode == 0, inspected.stderr
    assert "fuse_pool4/slice" in inspected.stdout
    assert "untrained" in inspected.stdout


def test_json_is_one_document_and_nothing_else(call_cli: Call, photo: Path, shared_bundle: Path) -> None:
    exported = json.loads(call_cli("export", "--variant", "32s", *NARROW, "--json")[1])
    assert exported["parity"]["passed"] is True
    assert exported["path"] == "fcn32s"
    assert exported["model"]["fcn_deploy.variant"] == "32s"

    verified = json.loads(call_cli("verify", shared_bundle, "--json")[1])
    assert len(verified["parity"]["comparisons"]) == 7
    assert verified["parity"]["tier"]["max_error"] == 1e-5

    predicted = json.loads(call_cli("predict", shared_bundle, photo, "none.png", "--json")[1])
    assert [p["failure"] is None for p in predicted] == [True, False]
    assert [p["untrained"] for p in predicted] == [True, True]

    inspected = json.loads(call_cli("inspect", shared_bundle, "--json")[1])
    assert inspected["layers"][0]["name"] == "conv1_1"

    assert {f["name"] for f in json.loads(call_cli("doctor", "--json")[1])} >= {"torch", "provider cpu"}


@pytest.mark.parametrize(("arguments", "code", "facts"), [
    (("export", "--variant", "64s"), 2, "64s 8s 16s 32s"),
    (("export",), 2, "neither variant module --variant 8s 16s 32s --module"),
    (("exprt",), 2, "'exprt' command 'export'"),
    (("export", "--variant", "8s", "--size", "big"), 2, "--size 'big' pixels HxW"),
    (("export", "--variant", "8s", "--size", "1x2x3"), 2, "--size '1x2x3' pixels HxW"),
    (("export", "--variant", "8s", "--size", "-5"), 2, "--size -5"),
    (("export", "--variant", "16s", "--size", "375x500"), 2, "FCN-16s floor 375 373 378 --size --geometry caffe"),
    (("export", "--variant", "8s", "--size", "10"), 2, "height 10 FCN-8s fc6 7 pool5 6 --size 26"),
    (("export", "--variant", "8s", "--num-classes", "0"), 2, "0 1 255"),
    (("export", "--variant", "8s", "--opset", "9"), 2, "opset 9 18 23"),
    (("export", "--variant", "8s", "--batch", "0"), 2, "batch 0 1"),
    (("export", "--variant", "8s", "--size", "1" + "0" * 5000), 2, "Invalid --size pixels"),
    (("export", "--variant", "8s", "--size", "2000000"), 2, "2000000 16777216"),
    (("export", "--variant", "8s", "--rng-seed", "99999999999999999999"), 2, "99999999999999999999 0"),
    (("inspect", "x" * 300), 3, "File name too long"),
    (("predict", "nothing", "x" * 300), 3, "File name too long"),
    (("export", "--variant", "8s", "--output", "/proc/nobody/writes/here"), 3, "cannot /proc/nobody/writes/here"),
    (("export", "--variant", "8s", "--at-once"), 2, "--at-once fcn8s-atonce FCN-8s random"),
    (("export", "--variant", "8s", "--checkpoint", "none.pth"), 3, "checkpoint none.pth file"),
    (("verify", "nothing"), 3, "nothing neither bundle ONNX export"),
    (("inspect", "nothing"), 3, "nothing neither bundle ONNX export"),
    (("predict", "nothing", "*.jpg"), 3, "*.jpg no image"),
    (("verify", "nothing.plan"), 3, "nothing.plan"),
    (("verify", "nothing.plan", "--layers"), 2, "nothing.plan --layers"),
    (("verify", "nothing.plan", "--provider", "cuda"), 2, "nothing.plan cuda --provider"),
])  # fmt: skip
def test_bad_input_has_its_exit_code_and_leaves_nothing(
    call_cli: Call, tmp_path: Path, arguments: tuple[str, ...], code: int, facts: str
) -> None:
    found, output, errors = call_cli(*arguments)

    assert found == code, errors
    assert missing(facts, errors) == []
    assert output == ""
    assert list(tmp_path.iterdir()) == []


def test_an_existing_output_needs_force(call_cli: Call, bundle: Path) -> None:
    code, _, errors = call_cli("export", "--variant", "8s", *NARROW, "--output", bundle)
    assert code == 3
    assert missing(f"{bundle} exists --force", errors) == []

    assert call_cli("export", "--variant", "32s", *NARROW, "--output", bundle, "--force")[0] == 0
    assert fd.open_bundle(bundle).info.network.name == "FCN-32s"


def test_an_output_below_a_file(call_cli: Call, photo: Path) -> None:
    code, _, errors = call_cli("export", "--variant", "8s", *NARROW, "--output", photo / "out")

    assert code == 3
    assert missing(f"write {photo}/out file", errors) == []


def test_a_failed_verification_exits_5_and_saves_its_worst_input(call_cli: Call, bundle: Path) -> None:
    path = bundle / "model.onnx"
    data = bytearray(path.read_bytes())
    data[-4:] = np.float32(30).tobytes()  # the last weight of the last tensor
    alone = bundle.parent / "alone.onnx"
    alone.write_bytes(data)

    code, output, errors = call_cli("verify", alone)

    assert code == 5
    assert "FAILED  tier fp32" in output
    assert missing("PyTorch fp32", errors) == []
    assert "worst-input.npy" in output
    assert (alone.parent / "worst-input.npy").is_file()


def test_damaged_bundles_exit_3(call_cli: Call, bundle: Path, photo: Path) -> None:
    data = bytearray((bundle / "model.onnx").read_bytes())
    data[-1] ^= 1
    (bundle / "model.onnx").write_bytes(data)

    for command in (("verify", bundle), ("predict", bundle, photo), ("inspect", bundle)):
        code, output, errors = call_cli(*command)
        assert (code, output) == (3, "")
        assert missing("model.onnx SHA-256", errors) == []


def test_one_bad_photo_exits_3_after_the_rest(call_cli: Call, shared_bundle: Path, photo: Path, tmp_path: Path) -> None:
    Image.new("RGB", (1, 1)).save(tmp_path / "tiny.png")
    (tmp_path / "zero.png").write_bytes(b"")

    code, _, errors = call_cli("predict", shared_bundle, tmp_path, "--output", "out")

    assert code == 3
    assert "1 of 3" in errors
    assert missing("zero.png 0", errors) == []
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == [
        "failures.jsonl", "photo.labels.png", "photo.overlay.png", "tiny.labels.png", "tiny.overlay.png",
    ]  # fmt: skip


@pytest.mark.skipif(provider_problem(fd.Provider.CUDA) is None, reason="CUDA works here")
def test_cuda_without_cuda_exits_4(call_cli: Call, shared_bundle: Path, photo: Path) -> None:
    for command in (("verify", shared_bundle), ("predict", shared_bundle, photo)):
        code, output, errors = call_cli(*command, "--provider", "cuda")
        assert (code, output) == (4, "")
        assert "error: provider cuda" in errors


def interrupted(tmp_path: Path, number: int) -> int:
    """Send a signal to an export while it writes its model of 8 MB; returns the exit code."""

    def writing() -> bool:
        assert process.poll() is None, "the export ended before it could be interrupted"
        return any(f.stat().st_size > 1_000_000 for f in tmp_path.glob(".out.partial-*/model.onnx"))

    command = [sys.executable, "-m", "fcn_deploy", "export", "--variant", "32s"]
    command += ["--channel-divisor", "8", "--output", "out", "--force"]
    with started(command, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as process:
        wait_until(writing, seconds=100, pause=0.005)
        process.send_signal(number)
        return process.wait(30)


@pytest.mark.full
@pytest.mark.timeout(180)
@pytest.mark.parametrize(("number", "code", "swept"), [
    (signal.SIGINT, 130, True), (signal.SIGTERM, 143, True), (signal.SIGKILL, -9, False),
])  # fmt: skip
def test_interrupted_while_writing(tmp_path: Path, bundle: Path, number: int, code: int, swept: bool) -> None:
    """The old bundle stays as it was; only after SIGKILL is anything left, under a hidden name the next run sweeps."""
    bundle.rename(tmp_path / "out")

    assert interrupted(tmp_path, number) == code

    assert fd.open_bundle(tmp_path / "out").info.network.name == "FCN-8s"
    assert (list(tmp_path.glob(".out*")) == []) == swept


def test_a_closed_pipe_is_no_traceback(shared_bundle: Path) -> None:
    command = f"{sys.executable} -m fcn_deploy inspect {shared_bundle} | head -1"

    done = subprocess.run(["/bin/sh", "-c", command], capture_output=True, text=True, check=False, timeout=60)

    assert "Traceback" not in done.stderr


def test_brackets_in_paths_are_no_markup(call_cli: Call, tmp_path: Path) -> None:
    code, output, errors = call_cli("export", "--variant", "8s", *NARROW, "--no-verify", "--output", "run[bold]x[/]")

    assert code == 0, errors
    assert "run[bold]x[/]" in output
    assert (tmp_path / "run[bold]x[/]" / "model.onnx").is_file()


def test_outputs_equal_bit_for_bit_are_written_down(call_cli: Call) -> None:
    """An infinite signal to noise ratio has no number in JSON."""
    code, output, errors = call_cli(
        "export", "--variant", "32s", "--size", "32", "--num-classes", "1", "--channel-divisor", "4096", "--json"
    )

    assert code == 0, errors
    assert json.loads(output)["parity"]["passed"] is True


def test_a_full_disk_behind_stdout(run_cli: Run, shared_bundle: Path) -> None:
    with Path("/dev/full").open("w") as full:
        done = run_cli("inspect", shared_bundle, capture_output=False, stdout=full, stderr=subprocess.PIPE)

    assert done.returncode == 3
    assert "No space left on device" in done.stderr


def test_what_nobody_expected_is_one_line_and_a_saved_traceback(
    call_cli: Call, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise ZeroDivisionError("by zero")

    monkeypatch.setattr("fcn_deploy.inspection.open_bundle", fail)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))

    code, output, errors = call_cli("inspect", "bundle")

    (saved,) = tmp_path.glob("fcn-deploy-*.txt")
    assert (code, output) == (70, "")
    assert errors == f"error: unexpected ZeroDivisionError: by zero\nThis is a bug: report it with {saved}.\n"
    assert saved.read_text().startswith("Traceback")


def test_names_cannot_steer_the_terminal(call_cli: Call, tmp_path: Path) -> None:
    r"""A file name and a key in a checkpoint with escape sequences; to some terminals \x9b alone begins one."""
    hostile = "\x1b]0;owned\x07\x1b[2J\x9b2J\u202e\nerror: forged"
    torch.save({f"conv1_1.{hostile}": torch.zeros(1), "conv1_1.weight": torch.zeros(1)}, tmp_path / "odd.pth")
    shown = r"\x1b]0;owned\x07\x1b[2J\x9b2J\u202e\nerror: forged"

    _, _, missing_file = call_cli("inspect", f"none{hostile}")
    code, output, checkpoint = call_cli("export", "--variant", "8s", *NARROW, "--checkpoint", "odd.pth")

    assert code == 3
    assert shown in missing_file
    assert not {"\x1b", "\x9b", "\x07", "\u202e"} & set(missing_file + output + checkpoint)
