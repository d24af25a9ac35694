import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from exporters.onnx import OnnxOptions, export_graph
from exporters.passes.cost import MACHINES, Machine, machine_of
from exporters.passes.edit import RewriteResult
from exporters.passes.live_window import LiveWindow
from exporters.passes.trace import Trace, trace
from exporters.passes.window_plan import cheapest_plan, plan_windows
from exporters.simplify import simplify
from fcn_deploy import Geometry, NetworkSpec, Precision, Variant
from fcn_deploy.choices import Target
from fcn_deploy.geometry import axis_fits
from fcn_deploy.graph import typed_skeleton
from fcn_deploy.models.weights import random_network
from tests.exporters.passes.graphs import (
    LAZY,
    THRIFTY,
    Trunk,
    as_double,
    multiply_adds,
    operators,
    parsed,
    run,
    run_exactly,
    weights,
    worst,
)

# Examples are too slow to shrink, and small as they are.
QUICK = settings(
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
ALL = list(itertools.product(Variant, Geometry))


def rewritten(model: ir.Model, machine: Machine = THRIFTY) -> tuple[ir.Model, RewriteResult]:
    copy = model.clone()
    result = LiveWindow(machine)(copy)
    assert isinstance(result, RewriteResult)
    onnx.checker.check_model(typed_skeleton(copy), full_check=True)
    return copy, result


def network_graph(variant: Variant, geometry: Geometry, height: int, width: int, batch: int = 1) -> ir.Model:
    network = random_network(NetworkSpec(variant, geometry, num_classes=3, channel_divisor=32), 1)
    return simplify(export_graph(network, OnnxOptions(height, width, batch)))[0]


def image(model: ir.Model, seed: int = 0) -> dict[str, np.ndarray]:
    (given_value,) = model.graph.inputs
    shape = given_value.shape.numpy() if given_value.shape is not None else ()
    dtype = given_value.dtype.numpy() if given_value.dtype is not None else np.float32
    return {str(given_value.name): np.random.default_rng(seed).normal(0, 60, shape).astype(dtype)}


def fitting(low: int, high: int) -> st.SearchStrategy[int]:
    return st.integers(low, high).filter(lambda n: all(axis_fits(n, v, g) for v, g in ALL))


@settings(QUICK, max_examples=10)
@given(
    variant_geometry=st.sampled_from(ALL),
    height=fitting(26, 120),
    width=fitting(26, 120),
    batch=st.sampled_from([1, 3]),
)
def test_networks_of_any_size_compute_the_same(
    tmp_path: Path, variant_geometry: tuple[Variant, Geometry], height: int, width: int, batch: int
) -> None:
    plain = network_graph(*variant_geometry, height, width, batch)

    fast, result = rewritten(plain)

    (site,) = result.sites
    assert site.applied, site.reason
    assert multiply_adds(fast) < 0.7 * multiply_adds(plain)
    assert worst(run(plain, tmp_path, image(plain)), run(fast, tmp_path, image(plain))) <= 1e-6
    again, second = rewritten(fast)
    assert not second.modified
    assert operators(again) == operators(fast)


CROPS = st.none() | st.tuples(st.integers(0, 4), st.integers(1, 3))


@settings(QUICK, max_examples=30)
@given(
    trunk=st.builds(
        Trunk, st.integers(1, 70), st.integers(1, 70), st.integers(0, 120), st.sampled_from(Geometry),
        st.sampled_from([1, 3]), CROPS, CROPS,
    ).filter(lambda t: min(t.height, t.width) + 2 * t.padding >= 130),
    chosen=st.sets(st.integers(0, 40)),
)  # fmt: skip
def test_any_plan_is_exact(tmp_path: Path, trunk: Trunk, chosen: set[int]) -> None:
    """Whatever places are widened: the cost model decides about speed, never about what is computed."""
    plain = trunk.model()
    model = plain.clone()
    found = trace(model)
    places = [i for i, step in enumerate(found.steps) if i and not step.is_local] + list(found.regions)
    plan = plan_windows(found, frozenset(place for i, place in enumerate(places) if i in chosen))
    passed = LiveWindow(THRIFTY)
    passed.rewrite(model, type(passed.find(model)[0])(found, plan, 1.0))
    onnx.checker.check_model(typed_skeleton(model), full_check=True)

    assert worst(run(plain, tmp_path, image(plain)), run(model, tmp_path, image(plain))) <= 1e-6


@pytest.mark.parametrize(("trunk", "applied"), [
    (Trunk(20, 20, padding=100), True),
    (Trunk(200, 33, padding=100), True),
    (Trunk(61, 40, padding=30), True),
    (Trunk(150, 150, padding=1), False),
    (Trunk(150, 150, padding=0), False),
])  # fmt: skip
def test_rewritten_or_refused_with_a_reason(tmp_path: Path, trunk: Trunk, applied: bool) -> None:
    plain = trunk.model()

    fast, result = rewritten(plain)

    assert [site.applied for site in result.sites] == [applied] * len(result.sites)
    assert applied == (multiply_adds(fast) < multiply_adds(plain))
    assert worst(run(plain, tmp_path, image(plain)), run(fast, tmp_path, image(plain))) <= 1e-6
    if trunk.padding == 1:
        assert result.sites[0].reason == (
            "the cheapest windows save 0.0% of the time, less than 1% (conv1_1: all of its map depends on the image)"
        )
    if trunk.padding == 0:
        assert all("relu1_1" not in site.node for site in result.sites)


@pytest.mark.parametrize(("variant", "geometry"), ALL)
def test_exact_in_exact_arithmetic(variant: Variant, geometry: Geometry) -> None:
    plain = as_double(network_graph(variant, geometry, 33, 47))

    fast, result = rewritten(plain)

    assert result.modified
    assert worst(run_exactly(plain, image(plain)), run_exactly(fast, image(plain))) <= 1e-12


def full_size() -> Trace:
    """FCN-8s' on a narrow copy that says it were wide: windows do not depend on widths, but what they cost does."""
    plain = network_graph(Variant.FCN8S, Geometry.FLOOR, 500, 500)
    widths = {"1": 64, "2": 128, "3": 256, "4": 512, "5": 512}
    for node in plain.graph:
        # conv3_2, relu3_2 and pool3 are all of block 3.
        block = str(node.name)[4:5]
        made, weight = node.outputs[0], node.inputs[1] if node.op_type == "Conv" else None
        if block in widths and str(node.name)[:4] in ("conv", "relu", "pool") and made.shape is not None:
            made.shape = ir.Shape((1, widths[block], *made.shape.numpy()[2:]))
            if weight is not None and node.inputs[0] is not None and node.inputs[0].shape is not None:
                weight.shape = ir.Shape((widths[block], node.inputs[0].shape.numpy()[1], 3, 3))
    return trace(plain)


def test_the_full_size_takes_at_most_123_billion_multiply_adds() -> None:
    found = full_size()

    plan = cheapest_plan(found, MACHINES[Target.CPU])

    total = 0
    for step in found.steps:
        if step.node.op_type == "Conv" and str(step.node.name).startswith("conv"):
            weight = step.node.inputs[1]
            assert weight is not None
            assert weight.shape is not None
            height, width = plan.windows[step.output]
            total += int(np.prod(weight.shape.numpy())) * height.size * width.size
    # fc6, fc7 and the scores, which no window changes: 4096 x (512 x 49 + 4096) x 15 x 15 and less than a billion more.
    assert total + 4096 * (512 * 49 + 4096) * 225 + 0.6e9 <= 123e9


def test_half_precision_on_a_gpu_widens_less() -> None:
    """Where products are fast, constants around a window are rather computed than copied; see docs/performance.md."""
    found = full_size()
    single, half = (machine_of(Target.CUDA, precision) for precision in (Precision.FP32, Precision.FP16))

    plans = [cheapest_plan(found, machine) for machine in (single, half)]

    assert [plan.widened for plan in plans] == [8, 3]
    assert plans[1].seconds(half) < plans[0].seconds(half)
    assert plans[0].seconds(single) < plans[1].seconds(single)


def test_weights_stay_as_they_are_and_every_convolution_before_its_relu() -> None:
    plain = network_graph(Variant.FCN8S, Geometry.FLOOR, 64, 64)

    fast, _ = rewritten(plain)

    for name, value in plain.graph.initializers.items():
        if name.endswith((".weight", ".bias")):
            assert fast.graph.initializers[name].const_value is value.const_value
    for node in fast.graph:
        if node.op_type == "Relu":
            producer = node.inputs[0].producer() if node.inputs[0] is not None else None
            assert producer is not None
            assert producer.op_type == "Conv"
            assert len(producer.outputs[0].uses()) == 1


def test_a_target_that_computes_for_nothing_keeps_its_graph() -> None:
    _, result = rewritten(network_graph(Variant.FCN32S, Geometry.FLOOR, 64, 64), LAZY)

    assert not result.modified


TWO = {"w": weights(2, 1, 3, 3), "b": np.array([0.5, -0.2], np.float32), "v": weights(2, 2, 3, 3, seed=1)}
FRAMED = "a = Conv<pads=[9,9,9,9]>(x, w, b) r = Relu(a) "
IN, OUT = "float[1,1,6,7] x", "float[1,2,H,W] y"


@pytest.mark.parametrize("body", [
    FRAMED + "y = Conv<pads=[1,1,1,1]>(r, v, b)",
    FRAMED + "c = Conv<pads=[1,1,1,1]>(r, v, b) y = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode=1>(c)",
    FRAMED + "c = Conv<dilations=[2,2]>(r, v, b) y = Conv<pads=[1,0,2,1], strides=[2,1]>(c, v, b)",
    FRAMED + "p = Pad(r, inner) y = Conv(p, v, b)",
    "p = Pad(x, outer, fill) a = Conv(p, w, b) r = Relu(a) y = Conv<pads=[1,1,1,1]>(r, v, b)",
    FRAMED + "n = BatchNormalization(r, s, b, b, s) c = Clip(n, zero, six) y = Conv<pads=[1,1,1,1]>(c, v, b)",
    FRAMED + "c = Conv<pads=[1,1,1,1]>(r, v, b) y = Slice(c, two, eight, axes)",
    FRAMED + "c = Conv<pads=[1,1,1,1]>(r, v, b) d = Conv<pads=[1,1,1,1]>(c, v, b) y = Add(c, d)",
    FRAMED + "y = MaxPool<kernel_shape=[3,3], strides=[2,2], pads=[1,1,1,1]>(r)",
])  # fmt: skip
def test_patterns_that_are_rewritten(tmp_path: Path, body: str) -> None:
    arrays = TWO | {
        "inner": np.array([0, 0, 2, 1, 0, 0, 1, 2]), "outer": np.array([0, 0, 8, 9, 0, 0, 9, 7]),
        "fill": np.array(0.7, np.float32), "s": np.array([0.9, 1.3], np.float32),
        "zero": np.array(0, np.float32), "six": np.array(6, np.float32),
        "two": np.array([2, 3]), "eight": np.array([18, 19]), "axes": np.array([2, 3]),
    }  # fmt: skip
    plain = parsed(body, IN, OUT, **arrays)

    fast, result = rewritten(plain)

    assert [site.applied for site in result.sites] == [True]
    assert multiply_adds(fast) < multiply_adds(plain)
    assert worst(run(plain, tmp_path, image(plain)), run(fast, tmp_path, image(plain))) <= 1e-6


@pytest.mark.parametrize("body", [
    "y = Relu(x)",
    "y = Conv(x, w, b)",
    "y = Conv<pads=[9,9,0,9]>(x, w, b)",
    "y = Conv<auto_pad=\"SAME_UPPER\">(x, w, b)",
    "y = Pad<mode=\"reflect\">(x, five)",
    "y = Pad(x, n)",
])  # fmt: skip
def test_patterns_that_frame_nothing(body: str) -> None:
    inputs = f"{IN}, int64[8] n" if "n)" in body else IN
    arrays = TWO | {"five": np.array([0, 0, 5, 5, 0, 0, 5, 5])}
    plain = parsed(body, inputs, "float[1,C,H,W] y", **arrays)

    _, result = rewritten(plain)

    assert (result.modified, result.sites) == (False, ())


@pytest.mark.parametrize(("follows", "reason"), [
    ("y = Sigmoid(r)", "Sigmoid is not followed"),
    ("y = Conv<auto_pad=\"SAME_UPPER\">(r, v, b)", "Conv with auto_pad"),
    ("y = MaxPool<kernel_shape=[2,2], auto_pad=\"SAME_LOWER\">(r)", "MaxPool with auto_pad"),
    ("y, i = MaxPool<kernel_shape=[2,2]>(r)", "MaxPool outputs indices"),
    ("y = Pad<mode=\"edge\">(r, five)", "Pad is not constant"),
    ("y = Pad(r, five, fill)", "Pad fills with a value other than 0"),
    ("y = Pad(r, crop)", "Pad reaches beyond height and width, or crops"),
    ("y = Clip(r, x0)", "Clip has inputs that are not constant"),
])  # fmt: skip
def test_where_the_trace_ends_it_says_why(follows: str, reason: str) -> None:
    arrays = TWO | {
        "five": np.array([0, 0, 5, 5, 0, 0, 5, 5]), "crop": np.array([0, 0, -1, 0, 0, 0, 0, 0]),
        "fill": np.array(1, np.float32),
    }  # fmt: skip
    model = parsed(FRAMED + follows, f"{IN}, float x0", "float[1,2,H,W] y", **arrays)

    found = trace(model)

    assert [step.node.name for step in found.steps] == ["a", "r"]
    assert found.stops == (f"y: {reason}",)


def test_shapes_that_are_not_fixed_are_left_alone() -> None:
    model = parsed(FRAMED + "y = Conv<pads=[1,1,1,1]>(r, v, b)", "float[1,1,H,7] x", "float[1,2,P,Q] y", **TWO)

    assert trace(model).steps == ()
