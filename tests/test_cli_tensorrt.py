"""`fcn-deploy tensorrt`, and the commands that take an engine, as a user meets them."""

import json
from pathlib import Path

import pytest

from fcn_deploy.artifact.engine import sidecar_path
from tests.conftest import Call, Run
from tests.engines import WITHOUT_GPU, rtx

ADA = ("--flavour", "tensorrt-rtx", "--compute-capability", "12.0,8.9")


def test_an_engine_from_a_bundle(run_cli: Run, bundle: Path, tmp_path: Path) -> None:
    made = run_cli("tensorrt", bundle, "--precision", "fp16", *ADA)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    assert lines[0].startswith("FCN-8s (floor geometry, 21 classes, channels / 16), untrained")
    assert lines[1] == "input: image float32 1x3x96x96; output: logits float32 1x21x96x96"
    assert lines[2] == "100% of 36 layers in fp16 (36 in fp16), as TensorRT's builder lists the engine"
    assert lines[3] == f"runs with tensorrt-rtx {rtx().version} on compute capability 8.9, 12.0"
    assert lines[4].startswith(f"wrote {bundle}.plan: ")
    assert "convert to fp16" in made.stderr
    assert (tmp_path / "bundle.plan.json").is_file()

    again = run_cli("tensorrt", bundle, "--precision", "fp16", *ADA)
    assert again.returncode == 0
    assert again.stdout.startswith(f"up to date, skipped: {bundle}.plan\n")

    other = run_cli("tensorrt", bundle, *ADA)
    assert other.returncode == 3
    assert f"error: {bundle}.plan exists already and is another: fp16 for compute capability 8.9, 12.0" in other.stderr


def test_json_and_inspect(call_cli: Call, shared_bundle: Path, tmp_path: Path) -> None:
    rtx()
    code, output, _ = call_cli("tensorrt", shared_bundle, *ADA, "--output", "e.plan", "--json")
    assert code == 0
    made = json.loads(output)
    assert made["path"] == "e.plan"
    assert made["capabilities"] == ["8.9", "12.0"]

    assert json.loads(call_cli("inspect", "e.plan", "--json")[1])["key"] == made["key"]
    shown = call_cli("inspect", "e.plan")[1]
    assert "100% of 36 layers in fp32" in shown
    assert f"from an ONNX file of SHA-256 {made['source_sha256']}" in shown

    code, _, errors = call_cli("inspect", "e.plan", "--picture", "maps.png")
    assert code == 2
    assert "e.plan is an engine, which has no feature maps to draw" in errors


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("--compute-capability", "ada"), 2, "'ada' is not a list of compute capabilities such as 8.9,12.0"),
    (("--compute-capability", "9.0"), 2, "compute capability 9.0: TensorRT-RTX"),
    ((*ADA, "--workspace", "0"), 2, "workspace 0 MiB is not between 1 and 1048576"),
    ((*ADA, "--timing-cache", "t.cache"), 2, "has no timing cache"),
    ((*ADA, "--precision", "fp8"), 2, "'fp8' is not one of"),
    ((*ADA, "--output", "e.engine"), 2, "e.engine does not end in .plan"),
    (ADA, 3, "nothing is neither a bundle nor an ONNX file"),
])  # fmt: skip
def test_bad_input_has_its_exit_code_and_leaves_nothing(
    call_cli: Call, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    rtx()

    found, output, errors = call_cli("tensorrt", "nothing", *arguments)

    assert found == code, errors
    assert message in " ".join(errors.replace("│", " ").split())
    assert output == ""
    assert list(tmp_path.iterdir()) == []


@WITHOUT_GPU
def test_engines_without_a_gpu(call_cli: Call, shared_bundle: Path, photo: Path) -> None:
    rtx()
    assert call_cli("tensorrt", shared_bundle, "--output", "e.plan")[0] == 4
    assert call_cli("tensorrt", shared_bundle, *ADA, "--output", "e.plan")[0] == 0

    for command in (("verify", "e.plan"), ("predict", "e.plan", photo)):
        code, output, errors = call_cli(*command)
        assert (code, output) == (4, "")
        assert "error: no NVIDIA driver (libcuda.so.1 is not found)" in errors

    code, _, errors = call_cli("bench", "e.plan")
    assert code == 2
    assert "e.plan: bench measures an engine beside the bundle that it was built of" in errors


def test_engines_of_another_tensorrt_and_damaged_ones(call_cli: Call, shared_bundle: Path, tmp_path: Path) -> None:
    version = rtx().version
    plan = tmp_path / "e.plan"
    assert call_cli("tensorrt", shared_bundle, *ADA, "--output", plan)[0] == 0
    whole, sidecar = plan.read_bytes(), sidecar_path(plan).read_text(encoding="utf-8")

    sidecar_path(plan).write_text(sidecar.replace(version, "1.6.0.1"), encoding="utf-8")
    code, _, errors = call_cli("verify", plan)
    assert code == 3
    assert f"e.plan was built by tensorrt-rtx 1.6.0.1; {version} is installed here" in errors

    plan.write_bytes(whole[: len(whole) // 2])
    for command in ("verify", "inspect"):
        code, _, errors = call_cli(command, plan)
        assert code == 3
        assert f"has {len(whole) // 2} bytes; e.plan.json says {len(whole)}" in errors

    sidecar_path(plan).unlink()
    code, _, errors = call_cli("inspect", plan)
    assert code == 3
    assert "has no sidecar e.plan.json" in errors
