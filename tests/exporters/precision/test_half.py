"""Half precision against PyTorch's own, and against float64 arithmetic rounded by NumPy."""

from pathlib import Path

import ml_dtypes
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx import TensorProto

from exporters.onnx import OnnxOptions, export_graph
from exporters.precision.half import LIMITS, cast_to_half, observed_names, rescale, rescale_factors
from exporters.precision.observe import observe
from fcn_deploy import Geometry, Variant
from fcn_deploy.choices import Head, ImageInput, Precision
from fcn_deploy.errors import UsageError
from fcn_deploy.graph import typed_skeleton
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.weights import random_network
from tests.exporters.passes.graphs import parsed, run, weights, with_ends
from tests.messages import missing
from tests.reference import relative_error

HALF = {Precision.FP16: TensorProto.FLOAT16, Precision.BF16: TensorProto.BFLOAT16}
TORCH = {Precision.FP16: torch.float16, Precision.BF16: torch.bfloat16}
NUMPY = {Precision.FP16: np.dtype(np.float16), Precision.BF16: np.dtype(ml_dtypes.bfloat16)}
# Relative spacing of the two types; a network of some layers errs by a few of them.
SPACING = {Precision.FP16: 2.0**-10, Precision.BF16: 2.0**-7}
LAYERS = "c = Conv<pads=[1,1,1,1]>(image, w, b) r = Relu(c) d = Conv(r, v, e) q = Relu(d) s = Conv(q, u)"
PRECISIONS = pytest.mark.parametrize("precision", list(HALF))


def layered(scale: float = 1.0) -> tuple[ir.Model, dict[str, np.ndarray]]:
    """Two layers and scores; the first map is `scale` times as large, the second as if it were not."""
    arrays: dict[str, np.ndarray] = {
        "w": weights(4, 3, 3, 3) * np.float32(scale), "b": weights(4, 1, seed=1)[:, 0] * np.float32(scale),
        "v": weights(4, 4, 1, 1, seed=2) / np.float32(scale), "e": weights(4, 1, seed=3)[:, 0],
        "u": weights(2, 4, 1, 1, seed=4),
    }  # fmt: skip
    return parsed(LAYERS, "float[2,3,6,7] image", "float[2,2,6,7] s", **arrays), arrays


def image(*shape: int) -> dict[str, np.ndarray]:
    return {"image": np.random.default_rng(5).normal(0, 50, shape or (2, 3, 6, 7)).astype(np.float32)}


def converted(model: ir.Model, precision: Precision) -> ir.Model:
    return cast_to_half(model, precision, {})[0]


def types_of(model: ir.Model) -> dict[str, int]:
    """The element types as ONNX's own inference finds them; raises when nodes disagree on one."""
    proto = onnx.shape_inference.infer_shapes(typed_skeleton(model), check_type=True, strict_mode=True)
    values = (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)
    found = {value.name: value.type.tensor_type.elem_type for value in values}
    return found | {tensor.name: tensor.data_type for tensor in proto.graph.initializer}


def rounded(values: np.ndarray, precision: Precision) -> np.ndarray:
    return np.asarray(values).astype(np.float32).astype(NUMPY[precision]).astype(np.float64)


def slow(arrays: dict[str, np.ndarray], x: np.ndarray, precision: Precision) -> np.ndarray:
    """The two layers and scores with every result rounded, sums in float64."""
    given = {name: rounded(array, precision) for name, array in arrays.items()}
    made = rounded(x, precision)
    for weight, bias, padding in (("w", "b", 1), ("v", "e", 0)):
        tensors = (torch.from_numpy(a) for a in (made, given[weight], given[bias]))
        data, kernel, offset = tensors
        made = rounded(torch.nn.functional.conv2d(data, kernel, offset, padding=padding).numpy(), precision).clip(0)
    scores = given if precision is Precision.FP16 else {"u": arrays["u"].astype(np.float64)}
    made = np.einsum("oc,nchw->nohw", scores["u"][:, :, 0, 0], made)
    return rounded(made, precision) if precision is Precision.FP16 else made


@PRECISIONS
def test_results_are_those_of_float64_rounded_after_every_layer(precision: Precision, tmp_path: Path) -> None:
    model, arrays = layered()
    expected = slow(arrays, image()["image"], precision)

    found = run(converted(model, precision), tmp_path, image())[0]

    assert found.dtype == np.float32
    # Sums in float32 now and then fall on the other side of a rounding.
    assert np.mean(np.abs(found - expected) <= 1e-6 * np.abs(expected)) > 0.9
    assert relative_error(expected, found) < 2 * SPACING[precision]
    assert relative_error(run(model, tmp_path, image())[0], found) > 0.05 * SPACING[precision], "nothing was rounded"


@PRECISIONS
@pytest.mark.parametrize(("variant", "geometry"), [(Variant.FCN8S, Geometry.FLOOR), (Variant.FCN32S, Geometry.CAFFE)])
def test_a_network_errs_as_pytorch_s_own_half_precision_does(
    precision: Precision, variant: Variant, geometry: Geometry, tmp_path: Path
) -> None:
    network = random_network(NetworkSpec(variant, geometry, 5, 32), 0)
    feed = image(1, 3, 64, 64)
    with torch.inference_mode():
        x = torch.from_numpy(feed["image"])
        exact = network.double()(x.double()).numpy()
        half = network.to(TORCH[precision])(x.to(TORCH[precision])).float().numpy()
    graph = export_graph(network.float(), OnnxOptions(64, 64))
    network_error = relative_error(exact, half)

    found = run(converted(graph, precision), tmp_path, feed)[0]

    assert relative_error(exact, found) < max(1.5 * network_error, SPACING[precision])
    assert relative_error(half, found) < 2 * network_error
    assert relative_error(exact, found) > 0.05 * SPACING[precision]


def test_float16_is_strongly_typed_between_two_casts() -> None:
    found = converted(layered()[0], Precision.FP16)
    types = types_of(found)

    assert {name for name, dtype in types.items() if dtype == TensorProto.FLOAT} == {"image", "s"}
    assert set(types.values()) == {TensorProto.FLOAT, TensorProto.FLOAT16}
    assert [n.op_type for n in found.graph] == ["Cast", "Conv", "Relu", "Conv", "Relu", "Conv", "Cast"]
    onnx.checker.check_model(typed_skeleton(found), full_check=True)


def test_the_head_of_bfloat16_is_in_float32() -> None:
    model, _ = layered()
    model.opset_imports[""] = 22
    found, report = cast_to_half(model, Precision.BF16, {})
    types = types_of(found)

    assert {name for name, dtype in types.items() if dtype == TensorProto.FLOAT} == {"image", "u", "q/float", "s"}
    assert [n.op_type for n in found.graph] == ["Cast", "Conv", "Relu", "Conv", "Relu", "Cast", "Conv"]
    assert (report.nodes, report.float_nodes) == (4, 1)
    onnx.checker.check_model(typed_skeleton(found), full_check=True)


@PRECISIONS
@pytest.mark.parametrize("batch", [1, 2])
def test_ends_of_pixels_and_labels_stay_as_they_are(precision: Precision, batch: int, tmp_path: Path) -> None:
    network = random_network(NetworkSpec(Variant.FCN16S, Geometry.CAFFE, 5, 64), 0)
    graph = export_graph(network, OnnxOptions(64, 64, batch, opset=22))
    model = with_ends(graph, ImageInput.UINT8, Head.LABELS)
    pixels = np.random.default_rng(0).integers(0, 256, (batch, 64, 64, 3), dtype=np.uint8)

    found = converted(model, precision)

    assert types_of(found)["pixels"] == types_of(found)["labels"] == TensorProto.UINT8
    labels = [run(one, tmp_path, {"pixels": pixels})[0] for one in (model, found)]
    assert labels[1].shape == (batch, 64, 64)
    assert np.mean(labels[0] == labels[1]) > (0.98 if precision is Precision.FP16 else 0.9)


def test_the_graph_before_is_left_as_it_was() -> None:
    model, _ = layered()
    before = ir.to_proto(model).SerializeToString()

    converted(model, Precision.FP16)

    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("value", [65520.0, -1e6, np.inf, np.nan])
def test_a_weight_beyond_the_limit_is_refused(value: float) -> None:
    arrays = layered()[1]
    arrays["v"][0, 0] = value
    model = parsed(LAYERS, "float[2,3,6,7] image", "float[2,2,6,7] s", **arrays)

    with pytest.raises(UsageError, match=r"v .*65504") as caught:
        converted(model, Precision.FP16)
    assert missing("--precision bf16 fp32", caught.value.remedy) == []


@PRECISIONS
def test_the_limits_are_the_types_own(precision: Precision) -> None:
    assert LIMITS[precision] == pytest.approx(torch.finfo(TORCH[precision]).max)


def test_a_weight_at_the_limit_is_kept() -> None:
    arrays = layered()[1]
    arrays["v"][0, 0] = 65504
    model = parsed(LAYERS, "float[2,3,6,7] image", "float[2,2,6,7] s", **arrays)

    found = converted(model, Precision.FP16).graph.initializers["v/float16"].const_value

    assert found is not None
    assert found.numpy().max() == 65504


def test_maps_beyond_float16_overflow_unless_they_are_scaled(tmp_path: Path) -> None:
    model, _ = layered(scale=4096)
    expected = run(model, tmp_path, image())[0]
    observed = observe(model, observed_names(model), [image()])
    assert observed["c"].largest > LIMITS[Precision.FP16] > observed["d"].largest
    scales = rescale_factors(model, observed, LIMITS[Precision.FP16])

    plain = run(converted(model, Precision.FP16), tmp_path, image())[0]
    scaled, report = cast_to_half(rescale(model, scales), Precision.FP16, observed)

    assert not np.isfinite(plain).all()
    assert list(scales) == ["c"]
    assert relative_error(expected, run(scaled, tmp_path, image())[0]) < 2 * SPACING[Precision.FP16]
    assert report.largest == max(a.largest for a in observed.values())
