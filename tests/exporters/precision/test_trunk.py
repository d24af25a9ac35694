"""Where a graph's trunk ends."""

from functools import cache

import numpy as np
import onnx_ir as ir
import pytest

from exporters.onnx import OnnxOptions, export_graph
from exporters.precision.half import head_nodes, prologue_nodes
from exporters.precision.observe import (
    activation_of,
    is_constant,
    rearranged_input,
    source_of,
    trunk_convolutions,
)
from exporters.precision.reduce import check_float32
from exporters.rewrite import rewrite
from exporters.simplify import simplify
from fcn_deploy import Geometry, Variant
from fcn_deploy.choices import Head, ImageInput, Target
from fcn_deploy.errors import UsageError
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.weights import random_network
from tests.exporters.passes.graphs import parsed, weights, with_ends
from tests.messages import states

VGG = [f"conv{block}_{i}" for block, count in enumerate((2, 2, 3, 3, 3), start=1) for i in range(1, count + 1)]
SKIPS = {Variant.FCN32S: [], Variant.FCN16S: ["score_pool4"], Variant.FCN8S: ["score_pool4", "score_pool3"]}


@cache
def graph_of(variant: Variant, geometry: Geometry = Geometry.FLOOR, *, exact: bool = False) -> ir.Model:
    graph = export_graph(random_network(NetworkSpec(variant, geometry, 5, 64), 0), OnnxOptions(64, 64))
    return rewrite(simplify(graph)[0], Target.CPU)[0] if exact else graph


def node_called(model: ir.Model, name: str) -> ir.Node:
    return next(node for node in model.graph if node.name == name)


def moved(body: str, output: str, **arrays: object) -> ir.Model:
    """A trunk convolution of a 3x6x6 image, and what `body` does to its map `r`."""
    layer = "c = Conv<pads=[1,1,1,1]>(image, w) r = Relu(c) "
    return parsed(layer + body, "float[1,3,6,6] image", output, w=weights(2, 3, 3, 3), **arrays)  # type: ignore[arg-type]


@pytest.mark.parametrize("exact", [False, True], ids=["plain", "exact"])
@pytest.mark.parametrize("variant", list(Variant))
def test_the_trunk_ends_behind_fc7(variant: Variant, exact: bool) -> None:
    model = graph_of(variant, exact=exact)

    assert [node.name for node in trunk_convolutions(model)] == [*VGG, "fc6", "fc7"]
    names = {str(node.name) for node in head_nodes(model)}
    assert {"score_fr", *SKIPS[variant]} <= names
    assert not names & {*VGG, "fc6", "fc7"}
    assert not any(node.op_type in ("Relu", "MaxPool") for node in head_nodes(model))


def test_the_head_of_labels_and_the_prologue_of_pixels() -> None:
    model = with_ends(graph_of(Variant.FCN32S, Geometry.CAFFE), ImageInput.UINT8, Head.LABELS)

    assert [node.op_type for node in model.graph if node in prologue_nodes(model)] == ["Cast", "Sub", "Transpose"]
    assert model.graph.outputs[0].producer() in head_nodes(model)
    assert prologue_nodes(model).isdisjoint(head_nodes(model))


def test_a_graph_of_float_images_has_no_prologue() -> None:
    assert prologue_nodes(graph_of(Variant.FCN32S)) == set()


@pytest.mark.parametrize("exact", [False, True], ids=["plain", "exact"])
def test_every_layer_reads_the_map_of_the_one_before(exact: bool) -> None:
    model = graph_of(Variant.FCN8S, exact=exact)
    layers = list(trunk_convolutions(model))

    sources = [source_of(node.inputs[0]) for node in layers]

    assert sources == [model.graph.inputs[0], *map(activation_of, layers[:-1])]


@pytest.mark.parametrize("order", ["k, r", "r, k", "k, r, k"])
def test_constants_around_a_map_are_not_its_source(order: str) -> None:
    model = moved(f"y = Concat<axis=2>({order})", "float[1,2,H,6] y", k=weights(1, 2, 1, 6))

    assert source_of(model.graph.outputs[0]).name == "r"


def test_a_spread_constant_is_one() -> None:
    body = "e = Expand(k, shape) y = Concat<axis=2>(e, r)"
    model = moved(body, "float[1,2,H,6] y", k=weights(1, 2, 1, 1), shape=[1, 2, 3, 6])

    assert is_constant(model.graph.node("e").outputs[0])
    assert not is_constant(model.graph.node("r").outputs[0])
    assert source_of(model.graph.outputs[0]).name == "r"


def test_two_maps_side_by_side_are_a_new_map() -> None:
    model = moved("p = Sigmoid(r) y = Concat<axis=1>(r, p)", "float[1,4,6,6] y")

    assert rearranged_input(model.graph.node("y")) is None
    assert source_of(model.graph.outputs[0]).name == "y"


def test_pools_and_slices_are_followed_back() -> None:
    body = "m = MaxPool<kernel_shape=[2,2], strides=[2,2]>(r) y = Slice(m, starts, ends)"
    model = moved(body, "float[1,2,3,2] y", starts=[0, 0, 0, 0], ends=[1, 2, 3, 2])

    assert source_of(model.graph.outputs[0]).name == "r"


@pytest.mark.parametrize(
    "outputs",
    ["float[1,2,6,6] r, float[1,2,6,6] c", "float[1,2,6,6] r, float[1,2,6,6] t"],
    ids=["output", "second Relu"],
)
def test_a_map_that_others_read_besides_a_relu_is_its_own_end(outputs: str) -> None:
    model = moved("t = Relu(c)" if " t" in outputs else "", outputs)

    assert [node.name for node in trunk_convolutions(model)] == ["c"]
    assert activation_of(model.graph.node("c")).name == "c"


@pytest.mark.parametrize(("body", "trunk"), [
    ("d = Conv(r, v) a = Add(d, d) y = Relu(a)", ["c", "d"]),
    ("d = Conv(r, v) y = HardSwish(d)", ["c", "d"]),
    ("d = Conv(r, v) y = Clip(d)", ["c", "d"]),
    ("d = Conv(r, v) y = Sigmoid(d)", ["c"]),
    ("d = ConvTranspose(r, v) e = Relu(d) y = Conv(e, v)", ["c"]),
    ("d = Conv(r, r) y = Relu(d)", ["c"]),
])  # fmt: skip
def test_the_trunk_reaches_to_the_last_activation(body: str, trunk: list[str]) -> None:
    model = moved(body, "float[1,A,B,C] y", v=weights(2, 2, 1, 1))

    assert [node.name for node in trunk_convolutions(model)] == trunk
    assert {str(node.name) for node in head_nodes(model)}.isdisjoint(trunk)


def test_nothing_without_its_first_input_has_a_source() -> None:
    with pytest.raises(ValueError, match="without its first input"):
        source_of(None)


def test_a_float32_graph_may_be_reduced() -> None:
    check_float32(graph_of(Variant.FCN32S))


@pytest.mark.parametrize(("body", "arrays", "named"), [
    ("q = QuantizeLinear(r, s, z) y = DequantizeLinear(q, s, z)", {"s": 0.1, "z": "uint8"}, "q"),
    ("h = Cast<to=10>(r) t = Mul(h, k) y = Cast<to=1>(t)", {"k": "float16"}, "k"),
])  # fmt: skip
def test_a_reduced_graph_is_not_reduced_again(body: str, arrays: dict[str, object], named: str) -> None:

    given = {k: np.zeros((), v) if isinstance(v, str) else np.float32(v) for k, v in arrays.items()}  # type: ignore[arg-type]
    model = moved(body, "float[1,2,6,6] y", **given)

    with pytest.raises(UsageError, check=states(f"reduced precision {named}")) as caught:
        check_float32(model)
    assert "float32 graph" in caught.value.remedy
