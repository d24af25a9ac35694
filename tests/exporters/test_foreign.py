"""Files that this toolkit did not export."""

import itertools
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

import fcn_deploy as fd
from fcn_deploy.models.weights import random_network
from tests.conftest import Call
from tests.messages import missing


class NormalisedFcn(nn.Module):
    """An FCN-32s of another make: three blocks with batch normalisation, padded by a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        widths = (3, 6, 8, 10)
        layers: list[nn.Module] = [nn.ConstantPad2d(40, 0.0)]
        for before, after in itertools.pairwise(widths):
            layers += [nn.Conv2d(before, after, 3, padding=int(before > 3)), nn.BatchNorm2d(after), nn.ReLU()]
            layers += [nn.MaxPool2d(2, ceil_mode=True)]
        self.trunk = nn.Sequential(*layers, nn.Conv2d(10, 4, 5))
        self.up = nn.ConvTranspose2d(4, 4, 16, stride=8)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        full: torch.Tensor = self.up(self.trunk(x))
        return full[:, :, 20 : 20 + x.shape[2], 20 : 20 + x.shape[3]]


def normalised() -> nn.Module:
    torch.manual_seed(0)
    network = NormalisedFcn()
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean = torch.randn(module.num_features)
            module.running_var = torch.rand(module.num_features) + 0.5
            nn.init.normal_(module.bias)
    return network.eval()


def script_export(network: nn.Module, path: Path, shape: tuple[int, ...], **options: Any) -> Path:
    """The older exporter, which traces TorchScript."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network, (torch.zeros(shape),), path, dynamo=False, opset_version=17, input_names=["data"], **options
        )
    return path


def logits(path: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {session.get_inputs()[0].name: image})[0])


def assert_equal_and_smaller(source: Path, result: fd.Optimized, shape: tuple[int, ...]) -> None:
    image = np.random.default_rng(0).normal(0, 60, shape).astype(np.float32)
    expected, found = logits(source, image), logits(result.path, image)
    assert np.abs(found - expected).max() <= 1e-6 * np.ptp(expected)
    before, after = result.rewriting.before, result.rewriting.after
    assert after.multiply_adds < 0.7 * before.multiply_adds
    onnx.checker.check_model(result.path, full_check=True)


def test_the_same_network_by_the_older_exporter(tmp_path: Path) -> None:
    shape = (1, 3, 64, 80)
    network = random_network(fd.NetworkSpec(fd.Variant.FCN8S, num_classes=5, channel_divisor=8), 0)
    source = script_export(network, tmp_path / "old.onnx", shape)

    result = fd.optimize(source, tmp_path / "new.onnx", fd.Target.CPU)

    assert result.rewriting.passes[0].applied
    assert_equal_and_smaller(source, result, shape)
    assert result.grown_bytes == (tmp_path / "new.onnx").stat().st_size - source.stat().st_size


@pytest.mark.parametrize("folded", [True, False])
def test_batch_normalisation_folded_or_not(tmp_path: Path, folded: bool) -> None:
    shape = (2, 3, 48, 40)
    mode = torch.onnx.TrainingMode.EVAL if folded else torch.onnx.TrainingMode.PRESERVE
    source = script_export(normalised(), tmp_path / "bn.onnx", shape, training=mode)
    kinds = [node.op_type for node in onnx.load(source).graph.node]
    assert ("BatchNormalization" in kinds) != folded

    result = fd.optimize(source, tmp_path / "fast.onnx", fd.Target.CPU)

    assert_equal_and_smaller(source, result, shape)


def test_a_bundle_s_model_keeps_its_facts(shared_bundle: Path, tmp_path: Path) -> None:
    result = fd.optimize(shared_bundle / "model.onnx", tmp_path / "again.onnx")

    assert not any(one.applied for one in result.rewriting.passes)
    assert fd.verify(result.path).parity.passed


def test_the_command_reports_and_refuses_to_overwrite(call_cli: Call, tmp_path: Path) -> None:
    script_export(normalised(), tmp_path / "bn.onnx", (1, 3, 48, 40))

    code, output, _ = call_cli("optimize", "bn.onnx", "fast.onnx", "--target", "cpu")
    assert code == 0
    assert missing("live-window /trunk/trunk.1/Conv cpu", output) == []

    code, _, errors = call_cli("optimize", "bn.onnx", "fast.onnx")
    assert (code, "fast.onnx exists" in errors, "--force" in errors) == (3, True, True)

    code, output, _ = call_cli("optimize", "bn.onnx", "fast.onnx", "--force", "--json")
    assert code == 0
    assert json.loads(output)["rewriting"]["passes"][0]["name"] == "live-window"


@pytest.mark.parametrize(("content", "message"), [
    (b"", "is truncated or not an ONNX model"),
    (b"hello", "is truncated or not an ONNX model"),
    (None, "is not a file"),
])  # fmt: skip
def test_what_is_no_model(call_cli: Call, tmp_path: Path, content: bytes | None, message: str) -> None:
    if content is not None:
        (tmp_path / "model.onnx").write_bytes(content)

    code, _, errors = call_cli("optimize", "model.onnx", "out.onnx")

    assert (code, message in errors) == (3, True)
    assert not (tmp_path / "out.onnx").exists()


def test_an_old_opset_is_refused(call_cli: Call, tmp_path: Path) -> None:
    text = '<ir_version: 8, opset_import: ["": 11]> g (float[1,3,4,4] x) => (float[1,3,4,4] y) { y = Relu(x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "old.onnx")

    code, _, errors = call_cli("optimize", "old.onnx", "out.onnx")

    assert code == 3
    assert missing("opset 11 13", errors) == []
    assert "onnx.version_converter" in errors
