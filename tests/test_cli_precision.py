"""Reduced precision on the command line: the sample from export to labels, and everything that is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcn_deploy as fd
from benchmarks.train_sample import Split, write_scenes
from tests.conftest import Call
from tests.messages import missing

SAMPLE = ("export", "--variant", "8s", "--checkpoint", "sample", "--size", "224")


def test_the_sample_in_int8_from_export_to_labels(call_cli: Call, tmp_path: Path) -> None:
    write_scenes(tmp_path / "photos", Split.TRAINING, 4, 224)

    code, output, errors = call_cli(*SAMPLE, "--precision", "int8", "--calibration", "photos")
    assert code == 0, errors
    assert "15 of 15 layers" in output
    assert "passed  tier int8: mean IU 0.9" in output
    assert missing("fcn8s int8 1x3x224x224 logits", output) == []
    assert "4 images" in errors

    code, output, _ = call_cli("verify", "fcn8s", "--checkpoint", "sample", "--layers")
    assert code == 0
    assert "noise" in output

    code, output, _ = call_cli("predict", "fcn8s", fd.SAMPLE_SCENE, "--json")
    assert code == 0
    assert set(json.loads(output)[0]["classes"]) >= {"background", "disc", "star"}


def test_fp16_says_what_it_saw(call_cli: Call) -> None:
    code, output, _ = call_cli(*SAMPLE, "--precision", "fp16")

    assert code == 0
    assert "fp16 in " in output
    assert "6.55e+04" in output


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(path)


@pytest.mark.parametrize(("arguments", "code", "facts"), [
    (("--precision", "int8"), 2, "int8 calibration images --calibration"),
    (("--precision", "int8", "--calibration", "nowhere"), 3, "nowhere file"),
    (("--precision", "int8", "--calibration", "empty"), 3, "empty no image"),
    (("--precision", "int8", "--calibration", "grey"), 3, "2 single colour"),
    (("--precision", "int8", "--calibration", "grey", "--min-agreement", "1.5"), 2, "agreement 1.5 0 1"),
    (("--precision", "bf16", "--opset", "18"), 2, "opset 18 22"),
    (("--precision", "fp8"), 2, "fp8 fp32 fp16 bf16 int8"),
    (("--calibration", "grey"), 2, "calibration fp32"),
    (("--precision", "fp16", "--calibration-method", "entropy"), 2, "method fp16"),
    (("--precision", "bf16", "--min-agreement", "0.9"), 2, "agreement bf16"),
    (("--num-classes", "21"), 3, "FCN-8s 21"),
])  # fmt: skip
def test_what_is_refused(call_cli: Call, tmp_path: Path, arguments: tuple[str, ...], code: int, facts: str) -> None:
    (tmp_path / "empty").mkdir()
    for index in range(2):
        picture(tmp_path / "grey" / f"{index}.png", 90 + index)

    found, _, errors = call_cli(*SAMPLE, *arguments)

    assert found == code
    assert missing(facts, errors) == []
    assert not (tmp_path / "fcn8s").exists()
