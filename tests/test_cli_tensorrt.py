"""`fcn-deploy tensorrt`, and the commands that take an engine, as a user meets them."""

import json
from pathlib import Path

import pytest

from fcn_deploy.artifact.engine import sidecar_path
from tests.conftest import Call, Run
from tests.engines import WITHOUT_GPU, rtx
from tests.messages import missing

ADA = ("--flavour", "tensorrt-rtx", "--compute-capability", "12.0,8.9")


def test_an_engine_from_a_bundle(run_cli: Run, call_cli: Call, bundle: Path, tmp_path: Path) -> None:
    made = run_cli("tensorrt", bundle, "--precision", "fp16", *ADA)
    assert made.returncode == 0, made.stderr
    lines = made.stdout.splitlines()
    for line, facts in zip(lines[:5], (
        "FCN-8s floor 21 16 untrained", "image float32 1x3x96x96 logits 1x21x96x96", "100% 36 fp16",
        f"tensorrt-rtx {rtx().version} 8.9 12.0", f"{bundle}.plan",
    ), strict=True):  # fmt: skip
        assert missing(facts, line) == []
    assert "fp16" in made.stderr
    assert (tmp_path / "bundle.plan.json").is_file()

    code, output, _ = call_cli("tensorrt", bundle, "--precision", "fp16", *ADA)
    assert code == 0
    assert output.startswith("up to date")
    assert f"{bundle}.plan" in output

    code, _, errors = call_cli("tensorrt", bundle, *ADA)
    assert code == 3
    assert missing(f"{bundle}.plan exists fp16 8.9 12.0 --force", errors) == []


def test_json_and_inspect(call_cli: Call, shared_bundle: Path, tmp_path: Path) -> None:
    rtx()
    code, output, _ = call_cli("tensorrt", shared_bundle, *ADA, "--output", "e.plan", "--json")
    assert code == 0
    made = json.loads(output)
    assert made["path"] == "e.plan"
    assert made["capabilities"] == ["8.9", "12.0"]

    assert json.loads(call_cli("inspect", "e.plan", "--json")[1])["key"] == made["key"]
    shown = call_cli("inspect", "e.plan")[1]
    assert missing(f"100% 36 fp32 {made['source_sha256']}", shown) == []

    code, _, errors = call_cli("inspect", "e.plan", "--picture", "maps.png")
    assert code == 2
    assert missing("e.plan engine feature maps", errors) == []


@pytest.mark.parametrize(("arguments", "code", "facts"), [
    (("--compute-capability", "ada"), 2, "ada 8.9,12.0"),
    (("--compute-capability", "9.0"), 2, "9.0 TensorRT-RTX"),
    ((*ADA, "--workspace", "0"), 2, "workspace 0 1 1048576"),
    ((*ADA, "--timing-cache", "t.cache"), 2, "no timing cache"),
    ((*ADA, "--precision", "fp8"), 2, "fp8 fp16"),
    ((*ADA, "--output", "e.engine"), 2, "e.engine end .plan"),
    (ADA, 3, "nothing neither bundle ONNX"),
])  # fmt: skip
def test_bad_input_has_its_exit_code_and_leaves_nothing(
    call_cli: Call, tmp_path: Path, arguments: tuple[str, ...], code: int, facts: str
) -> None:
    rtx()

    found, output, errors = call_cli("tensorrt", "nothing", *arguments)

    assert found == code, errors
    assert missing(facts, errors) == []
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
        assert missing("NVIDIA libcuda.so.1", errors) == []

    code, _, errors = call_cli("bench", "e.plan")
    assert code == 2
    assert missing("e.plan bench engine bundle", errors) == []


def test_engines_of_another_tensorrt_and_damaged_ones(call_cli: Call, shared_bundle: Path, tmp_path: Path) -> None:
    version = rtx().version
    plan = tmp_path / "e.plan"
    assert call_cli("tensorrt", shared_bundle, *ADA, "--output", plan)[0] == 0
    whole, sidecar = plan.read_bytes(), sidecar_path(plan).read_text(encoding="utf-8")

    sidecar_path(plan).write_text(sidecar.replace(version, "1.6.0.1"), encoding="utf-8")
    code, _, errors = call_cli("verify", plan)
    assert code == 3
    assert missing(f"e.plan built tensorrt-rtx 1.6.0.1 {version} installed", errors) == []

    plan.write_bytes(whole[: len(whole) // 2])
    for command in ("verify", "inspect"):
        code, _, errors = call_cli(command, plan)
        assert code == 3
        assert missing(f"e.plan e.plan.json {len(whole) // 2} {len(whole)} bytes", errors) == []

    sidecar_path(plan).unlink()
    code, _, errors = call_cli("inspect", plan)
    assert code == 3
    assert missing("e.plan no sidecar e.plan.json", errors) == []
