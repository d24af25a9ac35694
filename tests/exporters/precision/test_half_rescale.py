"""Layers scaled by powers of two: bit for bit the same graph."""

from collections.abc import Mapping
from math import log2
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from exporters.passes.live_window import LiveWindow
from exporters.precision.half import HEADROOM, observed_names, rescale, rescale_factors
from exporters.precision.observe import Activation, observe, trunk_convolutions
from fcn_deploy.onnx_file import LARGE_TENSOR_BYTES
from tests.exporters.passes.graphs import THRIFTY, Trunk, operators, parsed, run, weights

FP16 = 65504.0


def layered(body: str, output: str = "float[1,2,H,W] s", **arrays: np.ndarray) -> ir.Model:
    """Two layers, the first of which gives `r` of 1x4x6x6; `body` goes on from there to `s`."""
    given = {"w": weights(4, 3, 3, 3), "b": weights(4, 1, seed=1)[:, 0], "vs": weights(2, 4, 1, 1, seed=2)}
    lines = f"c = Conv<pads=[1,1,1,1]>(image, w, b) r = Relu(c) {body}"
    return parsed(lines, "float[1,3,6,6] image", output, **given, **arrays)


def image(height: int = 6, width: int = 6, batch: int = 1) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(5).normal(0, 50, (batch, 3, height, width)).astype(np.float32)}


def largest(**magnitudes: float) -> dict[str, Activation]:
    return {name: Activation(low=-value, high=value / 2) for name, value in magnitudes.items()}


def assert_same_bits(model: ir.Model, scales: Mapping[str, float], folder: Path, feed: dict[str, np.ndarray]) -> None:
    changed = rescale(model, scales)
    initializers = {str(v.name) for v in changed.graph.initializers.values()}
    assert any("scaled" in name for name in initializers), "nothing was scaled"
    for expected, found in zip(run(model, folder, feed), run(changed, folder, feed), strict=True):
        np.testing.assert_array_equal(found, expected)


@given(st.floats(1e-3, 1e30))
def test_a_factor_is_the_largest_power_of_two_that_leaves_headroom(magnitude: float) -> None:
    model = layered("p = MaxPool<kernel_shape=[2,2]>(r) s = Conv(p, vs)")

    found = rescale_factors(model, largest(c=magnitude), FP16)

    if magnitude * HEADROOM <= FP16:
        assert found == {}
        return
    assert log2(found["c"]) == int(log2(found["c"])) < 0
    assert found["c"] * magnitude * HEADROOM <= FP16 * (1 + 1e-12)
    assert 2 * found["c"] * magnitude * HEADROOM > FP16


@pytest.mark.parametrize(
    ("magnitude", "factor"), [(8188, None), (8189, 0.5), (16376, 0.5), (16377, 0.25), (1e6, 2**-7)]
)
def test_factors_at_their_borders(magnitude: float, factor: float | None) -> None:
    expected = {} if factor is None else {"c": factor}

    assert rescale_factors(layered("s = Conv(r, vs)"), largest(c=magnitude), FP16) == expected


@pytest.mark.parametrize(("body", "output"), [
    ("t = Sigmoid(r) s = Conv(t, vs)", "float[1,2,H,W] s"),
    ("s = Conv(r, vs)", "float[1,2,H,W] s, float[1,4,6,6] r"),
    ("p = MaxPool<kernel_shape=[2,2]>(r) s = Conv(p, vs)", "float[1,2,H,W] s, float[1,4,5,5] p"),
    ("m = Concat<axis=2>(r, r) s = Conv(m, vs)", "float[1,2,H,W] s"),
])  # fmt: skip
def test_a_map_that_others_than_convolutions_read_is_not_scaled(body: str, output: str) -> None:
    assert rescale_factors(layered(body, output), largest(c=1e6), FP16) == {}


@pytest.mark.parametrize("body", [
    "s = Conv(r, vs)",
    "p = MaxPool<kernel_shape=[2,2], strides=[2,2], pads=[1,1,1,1]>(r) s = Conv<pads=[1,1,1,1]>(p, vs)",
    "p = Slice(r, starts, ends) s = Conv(p, vs)",
    "m = Concat<axis=2>(k, r, k) s = Conv(m, vs)",
    "m = Concat<axis=3>(r, k) p = MaxPool<kernel_shape=[2,2]>(m) s = Conv(p, vs)",
    "e = Expand(k1, shape) m = Concat<axis=2>(e, r) s = Conv(m, vs)",
])  # fmt: skip
def test_outputs_are_the_same_bit_for_bit(body: str, tmp_path: Path) -> None:
    constants = {"k": weights(1, 4, 6, 6, seed=7), "k1": weights(1, 4, 1, 1, seed=8), "shape": np.array([1, 4, 2, 6])}
    cut = {"starts": np.array([0, 0, 1, 2]), "ends": np.array([1, 4, 5, 6])}

    model = layered(body, "float[1,2,H,W] s", **constants, **cut)
    assert_same_bits(model, {"c": 2.0**-5}, tmp_path, image())


def test_a_spread_constant_on_both_sides_of_a_map_is_scaled_once(tmp_path: Path) -> None:
    body = "e = Expand(k, shape) m = Concat<axis=2>(e, r, e) s = Conv(m, vs)"
    model = layered(body, k=weights(1, 4, 1, 1, seed=8), shape=np.array([1, 4, 2, 6]))

    assert_same_bits(model, {"c": 2.0**-3}, tmp_path, image())


def test_a_layer_between_two_scaled_ones(tmp_path: Path) -> None:
    body = "d = Conv(r, v, b2) q = Relu(d) f = Conv(q, v, b2) p = Relu(f) s = Conv(p, vs)"
    model = layered(body, v=weights(4, 4, 1, 1, seed=3), b2=weights(4, 1, seed=4)[:, 0])

    assert_same_bits(model, {"c": 2.0**-5, "f": 2.0**-2}, tmp_path, image())


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("stored", [LARGE_TENSOR_BYTES, 64], ids=["constants in full", "constants spread"])
def test_a_trunk_with_windows_and_skips(
    batch: int, stored: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("exporters.passes.edit.LARGE_TENSOR_BYTES", stored)
    model = Trunk(40, 33, batch=batch, skip3=(9, 5)).model()
    plain = run(model, tmp_path, image(40, 33, batch))
    LiveWindow(THRIFTY)(model)
    assert ("Expand" in operators(model)) is (stored == 64)
    assert "Concat" in operators(model)
    names = [str(node.name) for node in trunk_convolutions(model)][:-1]
    scales = {name: 2.0 ** -(1 + i % 4) for i, name in enumerate(names) if i != 5}

    assert_same_bits(model, scales, tmp_path, image(40, 33, batch))
    np.testing.assert_allclose(run(model, tmp_path, image(40, 33, batch))[0], plain[0], atol=1e-4)


def test_scaled_layers_give_what_they_were_scaled_to() -> None:
    """The map itself is the scaled one: this is what keeps it in float16."""
    model = layered("s = Conv(r, vs)")
    before = observe(model, observed_names(model), [image()])["c"]

    after = observe(rescale(model, {"c": 0.125}), ["c"], [image()])["c"]

    assert (after.low, after.high) == (before.low / 8, before.high / 8)


def test_the_graph_before_keeps_its_weights() -> None:
    model = layered("s = Conv(r, vs)")
    before = ir.to_proto(model).SerializeToString()

    rescale(model, {"c": 0.25})

    assert ir.to_proto(model).SerializeToString() == before
