from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.equivalence import check_graph
from exporters.passes.cost import MACHINES
from exporters.passes.edit import RewriteResult, Site, required_constant
from exporters.passes.fast_convolution import FastConvolution, apply_tiling, tilings
from exporters.passes.toom_cook import DOWN
from exporters.rewrite import exact_passes
from fcn_deploy.choices import Precision, Target
from fcn_deploy.graph import layers
from tests.exporters.passes.graphs import as_double, multiply_adds, operators, parsed, run, run_exactly, weights, worst

CPU = MACHINES[Target.CPU]
# Moving bytes costs nothing: every tiling pays.
FREE_COPIES = replace(CPU, bytes_per_s=float("inf"), transform_bytes_per_s=float("inf"), node_s=0.0)
PADS = st.tuples(*[st.integers(0, 4)] * 4)


def convolution(
    given_shape: Sequence[int], filters: int, taps: tuple[int, int], pads: Sequence[int], attributes: str = ""
) -> ir.Model:
    """One convolution with bias and ReLU."""
    batch, channels, height, width = given_shape
    text = f"pads = [{', '.join(map(str, pads))}]{attributes}"
    return parsed(
        f"c = Conv<{text}>(x, w, b) y = Relu(c)",
        f"float[{batch}, {channels}, {height}, {width}] x",
        "float[N, K, H, W] y",
        w=weights(filters, channels, *taps),
        b=weights(filters, 1, seed=1)[:, 0] + np.float32(0.5),
    )


def direct(x: np.ndarray, w: np.ndarray, b: np.ndarray, pads: Sequence[int]) -> np.ndarray:
    """Tap by tap in float64."""
    top, left, bottom, right = pads
    padded = np.pad(x, ((0, 0), (0, 0), (top, bottom), (left, right)))
    height, width = padded.shape[2] - w.shape[2] + 1, padded.shape[3] - w.shape[3] + 1
    total = np.zeros((len(x), len(w), height, width)) + b.reshape(1, -1, 1, 1)
    for i in range(w.shape[2]):
        for j in range(w.shape[3]):
            total += np.einsum("nchw,kc->nkhw", padded[:, :, i : i + height, j : j + width], w[:, :, i, j])
    return np.asarray(np.maximum(total, 0))


def site_of(model: ir.Model, machine: object = FREE_COPIES) -> Site:
    result = FastConvolution(machine)(model)  # type: ignore[arg-type]
    assert isinstance(result, RewriteResult)
    (site,) = result.sites
    return site


@settings(deadline=None, max_examples=60)
@given(
    shape=st.tuples(st.integers(1, 3), st.integers(2, 4), st.integers(7, 15), st.integers(7, 15)),
    filters=st.integers(1, 3), taps=st.tuples(*[st.sampled_from(sorted(DOWN))] * 2), pads=PADS, data=st.data(),
)  # fmt: skip
def test_every_tiling_computes_the_same(
    shape: tuple[int, ...], filters: int, taps: tuple[int, int], pads: tuple[int, ...], data: st.DataObject
) -> None:
    model = as_double(convolution(shape, filters, taps, pads))
    x = np.random.default_rng(sum(shape)).normal(0, 50, shape)
    w, b = (required_constant(model.graph.initializers[name]) for name in "wb")
    node = model.graph[0]

    apply_tiling(model, node, data.draw(st.sampled_from(tilings(node))))

    assert node.graph is None
    assert worst([direct(x, w, b, pads)], run_exactly(model, {"x": x})) <= 1e-12


def test_onnx_runtime_computes_the_same_in_float32(tmp_path_factory: pytest.TempPathFactory) -> None:
    for batch in (1, 2):
        model = convolution((batch, 16, 30, 26), 8, (3, 3), (1, 1, 1, 1))
        x = np.random.default_rng(0).normal(0, 50, (batch, 16, 30, 26)).astype(np.float32)
        before = run(model, tmp_path_factory.mktemp("before"), {"x": x})

        site = site_of(model)

        check_graph(model)
        assert site.applied
        assert "Conv" in operators(model)
        assert worst(before, run(model, tmp_path_factory.mktemp("after"), {"x": x})) <= 2e-6


@pytest.mark.parametrize(("shape", "pool", "first"), [
    ((1, 8, 20, 17), "kernel_shape=[2,2], strides=[2,2]", True),
    ((2, 8, 20, 17), "kernel_shape=[2,2], strides=[2,2]", True),
    ((1, 8, 20, 17), "kernel_shape=[2,2], strides=[2,2], ceil_mode=1", False),
    ((1, 8, 20, 17), "kernel_shape=[3,3], strides=[2,2]", False),
    ((1, 8, 20, 17), "kernel_shape=[2,2], strides=[2,2], pads=[0,0,0,1]", False),
])  # fmt: skip
def test_the_pool_comes_before_bias_and_relu(tmp_path: Path, shape: tuple[int, ...], pool: str, *, first: bool) -> None:
    def model() -> ir.Model:
        return parsed(
            f"c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) y = MaxPool<{pool}>(r)",
            f"float[{', '.join(map(str, shape))}] x", "float[N, K, H, W] y",
            w=weights(4, 8, 3, 3), b=weights(4, 1)[:, 0],
        )  # fmt: skip

    x = np.random.default_rng(0).normal(0, 50, shape).astype(np.float32)
    fast = model()

    assert site_of(fast).applied
    order = [name for name in operators(fast) if name in ("MaxPool", "Add", "Relu")]
    assert order == (["MaxPool", "Add", "Relu"] if first else ["Add", "Relu", "MaxPool"])
    check_graph(fast)
    assert worst(run(model(), tmp_path, {"x": x}), run(fast, tmp_path, {"x": x})) <= 2e-6


def test_constants_of_transforms_are_no_parameters() -> None:
    plain = convolution((1, 16, 30, 26), 8, (3, 3), (1, 1, 1, 1))
    fast = plain.clone()
    site_of(fast)

    parameters = [sum(layer.parameters for layer in layers(model)) for model in (plain, fast)]
    assert parameters == [8 * 16 * 9 + 8] * 2
    # F(4, 3): 36 products for each of 8 x 7 tiles; transforms of 6 x 6 and 4 x 6 numbers along each axis.
    products = 36 * 16 * 8 * 8 * 7
    inputs = 16 * 6 * (6 * 8 * 26 + 36 * 8 * 7)
    outputs = 8 * 6 * (6 * 8 * 7 * 4 + 4 * 8 * 28)
    assert multiply_adds(fast) == products + inputs + outputs


def test_a_machine_whose_runtime_has_its_own_fast_convolutions_keeps_them() -> None:
    for target in Target:
        names = {precision: [one.name for one in exact_passes(target, precision)] for precision in Precision}
        chosen = {precision for precision, found in names.items() if "fast-convolution" in found}
        assert chosen == ({Precision.FP32} if target is Target.CPU else set())


def test_little_gain_is_no_gain() -> None:
    """Three input channels: the transforms of the output cost more than the products save."""
    site = site_of(convolution((1, 3, 64, 64), 64, (3, 3), (1, 1, 1, 1)), CPU)

    assert not site.applied
    assert "F(4x4, 3x3) takes" in site.reason


def test_it_is_not_applied_twice() -> None:
    model = convolution((1, 16, 30, 26), 8, (3, 3), (1, 1, 1, 1))
    site_of(model)

    assert FastConvolution(FREE_COPIES).find(model) == []


@pytest.mark.parametrize(("attributes", "reason"), [
    (", strides = [2, 1]", "strides (2, 1)"),
    (", dilations = [1, 2]", "dilations (1, 2)"),
    (", auto_pad = \"VALID\"", "padding"),
])  # fmt: skip
def test_other_convolutions_are_left_alone(attributes: str, reason: str) -> None:
    model = convolution((1, 4, 12, 12), 4, (3, 3), (1, 1, 1, 1), attributes)

    site = site_of(model)

    assert not site.applied
    assert reason in site.reason
    assert operators(model) == ["Conv", "Relu"]


@pytest.mark.parametrize(("body", "arrays", "reason"), [
    ("y = Conv<group = 2>(x, w)", {"w": weights(4, 2, 3, 3)}, "2 groups"),
    ("y = Conv(x, w)", {"w": weights(4, 4, 4, 4)}, "4x4 taps"),
    ("v = Identity(w) y = Conv(x, v)", {"w": weights(4, 4, 3, 3)}, "weights are not constant"),
])  # fmt: skip
def test_further_convolutions_are_left_alone(body: str, arrays: dict[str, np.ndarray], reason: str) -> None:
    site = site_of(parsed(body, "float[1, 4, 12, 12] x", "float[1, K, H, W] y", **arrays))

    assert not site.applied
    assert reason in site.reason


def test_halves_are_left_alone() -> None:
    model = parsed(
        "h = Cast<to = 10>(x) y = Conv(h, w)", "float[1, 4, 12, 12] x", "float16[1, K, H, W] y",
        w=weights(4, 4, 3, 3).astype(np.float16),
    )  # fmt: skip

    assert "FLOAT16" in site_of(model).reason


def test_unknown_sizes_are_left_alone() -> None:
    site = site_of(parsed("y = Conv(x, w)", "float[1, 4, H, W] x", "float[1, 4, H2, W2] y", w=weights(4, 4, 3, 3)))

    assert "not fixed" in site.reason
