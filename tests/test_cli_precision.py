"""Reduced precision on the command line: the sample from export to labels, and everything that is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

import fcn_deploy as fd
from benchmarks.train_sample import Split, write_scenes
from tests.conftest import Call

SAMPLE = ("export", "--variant", "8s", "--checkpoint", "sample", "--size", "224")


def test_the_sample_in_int8_from_export_to_labels(call_cli: Call, tmp_path: Path) -> None:
    write_scenes(tmp_path / "photos", Split.TRAINING, 4, 224)

    code, output, errors = call_cli(*SAMPLE, "--precision", "int8", "--calibration", "photos")
    assert code == 0, errors
    assert "int8 in 15 of 15 layers, scores and up-sampling in float: mean IU with the float graph 0.9" in output
    assert "passed  tier int8: mean IU 0.9" in output
    assert "wrote fcn8s: int8, float input 1x3x224x224, logits" in output
    assert "observe every layer on 4 images" in errors

    code, output, _ = call_cli("verify", "fcn8s", "--checkpoint", "sample", "--layers")
    assert code == 0
    assert "adds most noise" in output

    code, output, _ = call_cli("predict", "fcn8s", fd.SAMPLE_SCENE, "--json")
    assert code == 0
    assert set(json.loads(output)[0]["classes"]) >= {"background", "disc", "star"}


def test_fp16_says_what_it_saw(call_cli: Call) -> None:
    code, output, _ = call_cli(*SAMPLE, "--precision", "fp16")

    assert code == 0
    assert "fp16 in " in output
    assert "the largest that fits 6.55e+04" in output
    assert "half precision by rounding against PyTorch" in output.replace("\n", " ")


def picture(path: Path, value: int) -> None:
    path.parent.mkdir(exist_ok=True)
    Image.fromarray(np.full((20, 20, 3), value, np.uint8)).save(path)


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("--precision", "int8"), 2, "int8 has to see what values occur, and no calibration images are given"),
    (("--precision", "int8", "--calibration", "nowhere"), 3, "image nowhere is not a file"),
    (("--precision", "int8", "--calibration", "empty"), 3, "empty names no image"),
    (("--precision", "int8", "--calibration", "grey"), 3, "all 2 calibration images are of one colour"),
    (("--precision", "int8", "--calibration", "grey", "--min-agreement", "1.5"), 2, "min agreement 1.5 is not above 0"),
    (("--precision", "bf16", "--opset", "18"), 2, "opset 18 has no bfloat16 convolutions; 22 and later do"),
    (("--precision", "fp8"), 2, ""),
    (("--calibration", "grey"), 2, "calibration images with fp32, which has no use for it"),
    (("--precision", "fp16", "--calibration-method", "entropy"), 2, "a calibration method with fp16"),
    (("--precision", "bf16", "--min-agreement", "0.9"), 2, "a least agreement with bf16"),
    (("--num-classes", "21"), 3, "does not fit FCN-8s"),
])  # fmt: skip
def test_what_is_refused(call_cli: Call, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str) -> None:
    (tmp_path / "empty").mkdir()
    for index in range(2):
        picture(tmp_path / "grey" / f"{index}.png", 90 + index)

    found, _, errors = call_cli(*SAMPLE, *arguments)

    assert found == code
    assert message in errors.replace("\n", " ")
    assert not (tmp_path / "fcn8s").exists()
