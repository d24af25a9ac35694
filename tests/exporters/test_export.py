import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch

import fcn_deploy as fd
from fcn_deploy.models.weights import random_network
from fcn_deploy.onnx_file import read_model, write_model
from tests.conftest import narrow_options
from tests.messages import states


def files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*"))


@pytest.mark.parametrize("variant", fd.Variant)
@pytest.mark.parametrize("geometry", fd.Geometry)
def test_a_bundle_is_written_and_verified(tmp_path: Path, variant: fd.Variant, geometry: fd.Geometry) -> None:
    options = replace(
        narrow_options(tmp_path / "out", variant, size=100), geometry=geometry, command=("fcn-deploy", "x")
    )

    result = fd.export(options)

    assert files(tmp_path) == ["out", "out/manifest.json", "out/model.onnx"]
    assert result.parity is not None
    assert result.parity.passed
    assert [c.input_name for c in result.parity.comparisons] == ["astronaut.jpg", "noise 0"]
    assert result.file_bytes == (tmp_path / "out/model.onnx").stat().st_size
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["command"] == ["fcn-deploy", "x"]
    assert manifest["input_shape"] == [1, 3, 100, 100]
    assert manifest["parity"]["comparisons"][0]["relative_error"] == result.parity.comparisons[0].severity
    assert manifest["model"]["fcn_deploy.version.torch"] == torch.__version__
    onnx.checker.check_model(tmp_path / "out/model.onnx", full_check=True)


def test_weights_in_the_file_are_the_networks(tmp_path: Path) -> None:
    plain = fd.export(replace(narrow_options(tmp_path / "out"), optimize=fd.Optimize.SIMPLIFY, verify=False)).path
    expected = random_network(fd.NetworkSpec(fd.Variant.FCN8S, channel_divisor=16), 0).state_dict()

    found = read_model(plain / "model.onnx").graph.initializers

    for name, tensor in expected.items():
        value = found[name].const_value
        assert value is not None
        assert np.array_equal(value.numpy(), tensor.numpy())


def test_two_exports_are_the_same_file(tmp_path: Path) -> None:
    for name in ("one", "two"):
        fd.export(narrow_options(tmp_path / name, fd.Variant.FCN32S))

    assert (tmp_path / "one/model.onnx").read_bytes() == (tmp_path / "two/model.onnx").read_bytes()


def test_without_optimising_and_verifying(tmp_path: Path) -> None:
    options = replace(narrow_options(tmp_path / "out"), optimize=fd.Optimize.NONE, verify=False)

    result = fd.export(options)

    assert (result.parity, result.simplification) == (None, None)
    assert fd.open_bundle(tmp_path / "out").manifest["parity"] is None  # type: ignore[index]
    assert len(fd.inspect(tmp_path / "out").layers) == 49


def test_batches_are_exported_and_kept_apart(tmp_path: Path) -> None:
    result = fd.export(replace(narrow_options(tmp_path / "out"), onnx=fd.OnnxOptions(64, 96, batch=3)))

    assert result.input_shape == (3, 3, 64, 96)
    assert result.parity is not None
    assert result.parity.passed


def test_a_checkpoint_decides_the_geometry_unless_told(tmp_path: Path) -> None:
    state = random_network(fd.NetworkSpec(fd.Variant.FCN8S, channel_divisor=16), 5).state_dict()
    torch.save(state, tmp_path / "weights.pth")
    options = replace(narrow_options(tmp_path / "caffe"), weights=fd.WeightsOptions(tmp_path / "weights.pth"))

    named = fd.export(options)
    told = fd.export(replace(options, output=tmp_path / "floor", geometry=fd.Geometry.FLOOR))

    assert str(named.info.network).startswith("FCN-8s (caffe geometry")
    assert str(told.info.network).startswith("FCN-8s (floor geometry")
    assert not named.info.provenance.untrained
    assert str(named.info.provenance).startswith("checkpoint ")
    assert named.info.provenance.checkpoint_sha256 == fd.read_checkpoint(tmp_path / "weights.pth").sha256


def test_a_failed_check_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def damaged(model: ir.Model, path: Path) -> None:
        write_model(model, path)
        data = bytearray(path.read_bytes())
        data[-4:] = np.float32(30).tobytes()  # the last weight of the last tensor
        path.write_bytes(data)

    monkeypatch.setattr("exporters.export.write_model", damaged)

    with pytest.raises(fd.ParityError, match="PyTorch"):
        fd.export(narrow_options(tmp_path / "out"))

    assert files(tmp_path) == []


@pytest.mark.parametrize(("options", "error", "facts"), [
    ({"onnx": fd.OnnxOptions(375, 500), "variant": fd.Variant.FCN16S}, fd.SizeError, "height 375 FCN-16s"),
    ({"onnx": fd.OnnxOptions(20, 500)}, fd.SizeError, "fc6 7"),
    ({"num_classes": 0}, fd.UsageError, "0 1 255"),
    ({"weights": fd.WeightsOptions(Path("none.pth"))}, fd.CheckpointError, "none.pth"),
    ({"weights": fd.WeightsOptions(at_once=True)}, fd.UsageError, "--at-once"),
])  # fmt: skip
def test_bad_options_write_nothing(
    tmp_path: Path, options: dict[str, object], error: type[fd.FcnDeployError], facts: str
) -> None:
    with pytest.raises(error, check=states(facts)):
        fd.export(replace(narrow_options(tmp_path / "out"), **options))  # type: ignore[arg-type]

    assert files(tmp_path) == []


LIMITED = """
import resource, sys
from pathlib import Path
import fcn_deploy as fd
from tests.conftest import narrow_options
import exporters.export, fcn_deploy.models.fcn
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
try:
    fd.export(narrow_options(Path(sys.argv[1])))
except fd.OutputError as error:
    print(error)
"""


def test_a_file_system_that_takes_no_more(tmp_path: Path) -> None:
    """A limit on file sizes stands in for a full disk: the write itself fails half-way."""
    command = [sys.executable, "-c", LIMITED, str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=100)

    assert "File too large" in done.stdout
    assert files(tmp_path) == []
