"""The first wrong layer of artifacts that were damaged at a known place."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch

import fcn_deploy as fd
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.models.weights import random_network
from fcn_deploy.parity.bisect import LayerComparison, LayerReport, compare_layers
from fcn_deploy.parity.inputs import photo_input
from fcn_deploy.parity.tolerance import TIERS
from tests import reference
from tests.conftest import narrow_options

GIVEN = photo_input(SAMPLE_PHOTO, (1, 3, 96, 96))
NETWORK = random_network(fd.NetworkSpec(fd.Variant.FCN8S, channel_divisor=16), 0)
BOUND = TIERS["fp32"].max_error


def damaged(source: Path, target: Path, layer: str) -> Path:
    """The model with the bias of one layer's first channel off by a little."""
    model = onnx.load(source / "model.onnx")
    bias = next(t for t in model.graph.initializer if t.name == f"{layer}.bias")
    values = onnx.numpy_helper.to_array(bias).copy()
    values[0] += 0.01 + 0.01 * np.abs(values).max()
    bias.CopyFrom(onnx.numpy_helper.from_array(values, bias.name))
    onnx.save(model, target)
    return target


def test_every_layer_of_a_sound_artifact_keeps_the_bound_windows_and_all(shared_bundle: Path) -> None:
    report = compare_layers(shared_bundle / "model.onnx", NETWORK, GIVEN, BOUND)

    names = [layer.name for layer in report.layers]
    relus = [f"relu{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, n + 1)]
    assert names[:15] == [*relus, "relu6", "relu7"]
    assert {"score_fr", "score_pool4", "fuse_pool4", "score"} <= set(names)
    assert report.first_wrong is None
    assert all(layer.snr_db > 100 for layer in report.layers)
    assert "no layer exceeds 1e-05" in report.verdict


@pytest.mark.parametrize("target", [fd.Target.CUDA, fd.Target.TENSORRT])
def test_layers_that_rewrites_for_gpus_moved_are_found_where_they_are(target: fd.Target, tmp_path: Path) -> None:
    """A crop before a score moves its window; a ReLU behind a pool takes the pool's name."""
    options = replace(narrow_options(tmp_path / "bundle"), target=target, verify=False)

    report = compare_layers(fd.export(options).path / "model.onnx", NETWORK, GIVEN, BOUND)

    assert report.first_wrong is None
    names = {layer.name for layer in report.layers}
    last = {f"relu{b}_{n}" for b, n in enumerate((2, 2, 3, 3, 3), start=1)}
    assert names & last == (set() if target is fd.Target.CUDA else last)
    assert names >= ({f"pool{b}" for b in range(1, 6)} if target is fd.Target.CUDA else set())
    assert {"relu1_1", "relu7", "score_pool4", "score_pool3", "score"} <= names


@pytest.mark.parametrize(("layer", "found"), [
    ("conv1_2", "relu1_2"), ("conv3_1", "relu3_1"), ("fc6", "relu6"), ("score_pool4", "score_pool4"),
])  # fmt: skip
def test_the_damaged_layer_is_the_first_wrong_one(shared_bundle: Path, tmp_path: Path, layer: str, found: str) -> None:
    path = damaged(shared_bundle, tmp_path / "damaged.onnx", layer)

    report = compare_layers(path, NETWORK, GIVEN, BOUND)

    assert report.first_wrong is not None
    assert report.first_wrong.name == found
    assert f"on astronaut.jpg, {found} is the first layer to exceed 1e-05" in report.verdict


def test_errors_are_those_of_pytorch_s_own_maps(shared_bundle: Path, tmp_path: Path) -> None:
    """relu1_1 of the damaged graph is off by what its bias is off by, wherever it is not cut off at 0."""
    path = damaged(shared_bundle, tmp_path / "damaged.onnx", "conv1_1")
    state = NETWORK.state_dict()
    off = 0.01 + 0.01 * float(state["conv1_1.bias"].abs().max())
    expected = torch.relu(reference.convolve(torch.from_numpy(GIVEN.image), state, "conv1_1", pad=100))

    first = compare_layers(path, NETWORK, GIVEN, BOUND).layers[0]

    assert first.name == "relu1_1"
    assert first.max_abs_error == pytest.approx(off, rel=2e-3)
    # The artifact computes the live window alone; the range is that of the window.
    assert first.extent <= float(expected.max() - expected.min()) + 1e-3


def layer(name: str, noise: float) -> LayerComparison:
    return LayerComparison(name, 0.5, 10.0, noise, 1.0)


def test_without_a_bound_the_layer_that_adds_most_noise_is_named() -> None:
    report = LayerReport("x", None, (layer("a", 0.01), layer("b", 0.04), layer("c", 0.05)))

    assert report.first_wrong == report.layers[1]
    assert report.verdict == "on x, b adds most noise (5.0e-02 of its range, 14.0 dB)"
    assert report.to_dict()["first_wrong"] == "b"


def test_verify_asks_for_layers_and_says_where_it_began(shared_bundle: Path, tmp_path: Path) -> None:
    path = damaged(shared_bundle, tmp_path / "damaged.onnx", "conv4_2")

    result = fd.verify(path, fd.VerifyOptions(layers=True))

    assert result.layers is not None
    with pytest.raises(fd.ParityError, match=r"relu4_2.* 1e-05"):
        result.require()
    assert result.to_dict()["layers"]["first_wrong"] == "relu4_2"
