"""8-bit graphs against ONNX's definition of the two operators, written out in NumPy."""

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exporters.passes.edit import constant
from exporters.precision.int8 import Scale, map_names, map_scale, observe_maps, quantize_layers, rounded_weights
from exporters.precision.observe import Activation
from fcn_deploy.choices import Calibration, Target
from fcn_deploy.graph import typed_skeleton
from tests.exporters.passes.graphs import operators, parsed, run, run_exactly, weights

MINMAX = Calibration.MINMAX
LAYERS = """
c = Conv<pads=[1,1,1,1]>(image, w, b) r = Relu(c) p = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r)
d = Conv<pads=[1,1,1,1]>(p, w2, b2) q = Relu(d) s = Conv(q, vs)
"""
FLOATS = st.floats(-1e4, 1e4, width=32, allow_subnormal=False)


def network(body: str = LAYERS, batch: int = 1, **arrays: np.ndarray) -> ir.Model:
    given = {"w": weights(4, 3, 3, 3), "b": weights(4, 1, seed=1)[:, 0], "vs": weights(2, 4, 1, 1, seed=2)}
    given |= {"w2": weights(4, 4, 3, 3, seed=3), "b2": weights(4, 1, seed=4)[:, 0]}
    return parsed(body, f"float[{batch},3,6,6] image", "float[N,2,H,W] s", **given, **arrays)


def image(batch: int = 1) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(5).normal(0, 50, (batch, 3, 6, 6)).astype(np.float32)}


def scales_of(model: ir.Model, target: Target, batch: int = 1) -> dict[str, Scale]:
    return {name: map_scale(a, MINMAX, target) for name, a in observe_maps(model, [image(batch)]).items()}


def round_trip(values: np.ndarray, scale: Scale) -> np.ndarray:
    """QuantizeLinear and DequantizeLinear by their definition: round half to even, shift, saturate, and back."""
    info, zero = np.iinfo(scale.zero_point.dtype), int(scale.zero_point)
    integers = np.clip(np.rint(np.float64(values) / np.float64(scale.scale)) + zero, info.min, info.max)
    return np.asarray((integers - zero) * np.float64(scale.scale))


def rounded_kernel(weight: np.ndarray) -> np.ndarray:
    steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True).astype(np.float64) / 127
    return np.asarray(np.rint(weight / steps) * steps)


def convolve(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    image, kernel, offset = (torch.from_numpy(np.asarray(a, np.float64)) for a in (x, weight, bias))
    return np.asarray(torch.relu(torch.nn.functional.conv2d(image, kernel, offset, padding=1)).numpy())


@given(arrays(np.float32, st.tuples(st.integers(1, 5), st.integers(1, 3), st.just(2), st.just(2)), elements=FLOATS))
def test_weights_are_half_a_step_off_at_most(weight: np.ndarray) -> None:
    integers, steps = rounded_weights(weight)
    spread = steps[:, None, None, None].astype(np.float64)

    assert (integers.dtype.name, steps.dtype.name, steps.shape) == ("int8", "float32", weight.shape[:1])
    assert integers.min() >= -127
    assert (np.abs(integers * spread - weight) <= spread * 0.50001).all()
    largest = np.abs(weight).reshape(len(weight), -1).max(axis=1)
    np.testing.assert_allclose(steps[largest > 0] * 127, largest[largest > 0], rtol=1e-6)
    assert (np.abs(integers).reshape(len(weight), -1).max(axis=1)[largest > 0] == 127).all()


def test_a_channel_of_zeros_stays_one() -> None:
    integers, steps = rounded_weights(np.zeros((2, 1, 1, 1), np.float32))

    assert not integers.any()
    assert steps.tolist() == [1, 1]


@given(st.lists(FLOATS, min_size=1), st.sampled_from(Target))
def test_every_observed_value_is_half_a_step_off_at_most(values: list[float], target: Target) -> None:
    found = Activation()
    found.add(np.array(values, np.float32))

    scale = map_scale(found, MINMAX, target)

    assert round_trip(np.zeros(1), scale) == 0
    errors = np.abs(round_trip(np.array(values), scale) - values)
    assert errors.max() <= float(scale.scale) * 0.5001


@pytest.mark.parametrize(("low", "high", "step", "zero"), [
    (0, 255, 1, 0),  # what a ReLU gives
    (-100, 155, 1, 100),
    (-255, -100, 1, 255),  # dark images: 0 is beyond what occurs
    (100, 255, 1, 0),
    (0, 0, 1 / 255, 0),
])  # fmt: skip
def test_maps_for_a_cpu_are_uint8(low: float, high: float, step: float, zero: int) -> None:
    found = map_scale(Activation(low, high), MINMAX, Target.CPU)

    assert found.zero_point.dtype == np.uint8
    assert int(found.zero_point) == zero
    assert found.scale == pytest.approx(step) or high == low == 0


@pytest.mark.parametrize("target", [Target.CUDA, Target.TENSORRT])
def test_maps_for_a_gpu_are_symmetric_int8(target: Target) -> None:
    found = map_scale(Activation(-254, 100), MINMAX, target)

    assert (float(found.scale), int(found.zero_point), found.zero_point.dtype.name) == (2, 0, "int8")


@pytest.mark.parametrize("batch", [1, 2])
@pytest.mark.parametrize("target", [Target.CPU, Target.CUDA])
def test_a_graph_computes_what_its_integers_say(target: Target, batch: int, tmp_path: object) -> None:
    model = network(batch=batch)
    scales, given = scales_of(model, target, batch), {v.name: v for v in model.graph.initializers.values()}
    arrays = {name: v.const_value.numpy() for name, v in given.items() if v.const_value is not None}
    x = round_trip(image(batch)["image"], scales["image"])
    x = round_trip(convolve(x, rounded_kernel(arrays["w"]), arrays["b"]), scales["r"])
    x = x.reshape(batch, 4, 3, 2, 3, 2).max(axis=(3, 5))
    x = round_trip(convolve(x, rounded_kernel(arrays["w2"]), arrays["b2"]), scales["q"])
    expected = np.einsum("oc,nchw->nohw", arrays["vs"][:, :, 0, 0], x)

    candidate = quantize_layers(model, scales, {"c", "d"})
    candidate.opset_imports[""] = 21  # the first whose operators ONNX's own reference has

    # A value on the border of two integers may fall to either side: one step of the last map at most.
    step = float(scales["q"].scale) * np.abs(arrays["vs"]).sum(axis=(1, 2, 3)).max()
    for made in (run_exactly(candidate, image(batch))[0], run(candidate, tmp_path, image(batch))[0]):
        assert np.abs(made - expected).max() <= step
        assert np.median(np.abs(made - expected)) < step / 100
    assert np.abs(run_exactly(model, image(batch))[0] - expected).max() > step / 100, "rounding changed nothing"


@pytest.mark.parametrize("target", [Target.CPU, Target.CUDA])
def test_types_and_places_of_the_integers(target: Target) -> None:
    model = network()

    found = quantize_layers(model, scales_of(model, target), {"c", "d"})

    onnx.checker.check_model(typed_skeleton(found), full_check=True)
    tensors = {name: v.const_value.numpy() for name, v in found.graph.initializers.items() if v.const_value is not None}
    assert {a.dtype for n, a in tensors.items() if n.endswith("weight_int8")} == {np.dtype(np.int8)}
    assert {n: a.shape for n, a in tensors.items() if n.endswith("weight_scale")} == {
        "c/weight_scale": (4,), "d/weight_scale": (4,)
    }  # fmt: skip
    zeros = [a for n, a in tensors.items() if n.endswith("/zero_point")]
    assert {a.dtype.name for a in zeros} == {"uint8" if target is Target.CPU else "int8"}
    assert any(a != 0 for a in zeros) is (target is Target.CPU)
    assert tensors["b"].dtype == tensors["vs"].dtype == np.float32
    head = found.graph.node("s")
    assert head.inputs[1] is found.graph.initializers["vs"]
    assert found.graph.outputs[0].dtype is ir.DataType.FLOAT


def test_layers_that_are_not_chosen_stay_as_they_are() -> None:
    model = network()
    scales = scales_of(model, Target.CPU)

    found = quantize_layers(model, scales, {"d"})

    assert found.graph.node("c").inputs[0] is found.graph.inputs[0]
    assert found.graph.node("c").inputs[1] is found.graph.initializers["w"]
    assert operators(quantize_layers(model, scales, set())) == operators(model)
    assert {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(operators(model))


@pytest.mark.parametrize("order", ["k, r", "r, k", "k, r, k", "e, r, e", "k, k, r"])
def test_constants_beside_a_map_are_rounded_like_it(order: str, tmp_path: object) -> None:
    body = f"""c = Conv<pads=[1,1,1,1]>(image, w, b) r = Relu(c) {"e = Expand(k1, sizes)" if "e" in order else ""}
    m = Concat<axis=2>({order}) d = Conv<pads=[1,1,1,1]>(m, w2, b2) q = Relu(d) s = Conv(q, vs)"""
    constants = {"k": weights(1, 4, 2, 6, seed=7), "k1": weights(1, 4, 1, 1, seed=8), "sizes": np.array([1, 4, 2, 6])}
    model = network(body, 1, **{name: value for name, value in constants.items() if "e" in order or name == "k"})
    scales = scales_of(model, Target.CPU)

    found = quantize_layers(model, scales, {"c", "d"})

    onnx.checker.check_model(typed_skeleton(found), full_check=True)
    beside = [value.producer() for value in found.graph.node("m").inputs if value is not None]
    assert [node.op_type for node in beside if node is not None] == ["DequantizeLinear"] * len(order.split(","))
    assert {float(constant(node.inputs[1]) or 0) for node in beside if node is not None} == {float(scales["r"].scale)}
    error = np.abs(run(found, tmp_path, image())[0] - run(model, tmp_path, image())[0]).max()
    assert 0 < error < 0.05 * np.ptp(run(model, tmp_path, image())[0])


def test_two_maps_side_by_side_have_a_scale_of_their_own(tmp_path: object) -> None:
    body = """c = Conv<pads=[1,1,1,1]>(image, w, b) r = Relu(c) h = Mul(r, half) m = Concat<axis=2>(r, h)
    d = Conv<pads=[1,1,1,1]>(m, w2, b2) q = Relu(d) s = Conv(q, vs)"""
    model = network(body, half=np.array(0.01, np.float32))

    assert map_names(model) == ["image", "m", "r", "q"]
    found = quantize_layers(model, scales_of(model, Target.CPU), {"c", "d"})
    expected = run(model, tmp_path, image())[0]
    assert 0 < np.abs(run(found, tmp_path, image())[0] - expected).max() < 0.05 * np.ptp(expected)
