import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from exporters import simplifier
from exporters.equivalence import Difference, compare_graphs
from exporters.onnx import OnnxOptions, export_graph
from exporters.simplify import simplify
from fcn_deploy import NetworkSpec, ParityError, Variant
from fcn_deploy.models.weights import random_network
from fcn_deploy.onnx_file import write_model
from fcn_deploy.runtime.ort import OrtRunner

OPTIONS = OnnxOptions(64, 80)


@pytest.fixture(scope="module")
def graph() -> ir.Model:
    network = random_network(NetworkSpec(Variant.FCN8S, num_classes=5, channel_divisor=8), 0)
    return export_graph(network, OPTIONS)


def run(model: ir.Model, folder: Path, name: str) -> np.ndarray:
    image = np.random.default_rng(0).normal(0, 60, OPTIONS.shape).astype(np.float32)
    write_model(model, folder / name)
    with OrtRunner(folder / name) as runner:
        return runner.run({"image": image})["logits"]


@pytest.mark.parametrize(("variant", "before", "after"), [
    (Variant.FCN32S, 39, 38), (Variant.FCN16S, 44, 42), (Variant.FCN8S, 49, 46),
])  # fmt: skip
def test_crops_are_merged_and_nothing_else_changes(variant: Variant, before: int, after: int) -> None:
    network = random_network(NetworkSpec(variant, channel_divisor=32), 0)

    simplified, report = simplify(export_graph(network, OPTIONS))

    crops = {Variant.FCN32S: 1, Variant.FCN16S: 2, Variant.FCN8S: 3}[variant]
    assert (report.nodes_before, report.nodes_after, report.refused) == (before, after, None)
    assert (report.before.pop("Slice"), report.after.pop("Slice")) == (2 * crops, crops)
    assert report.before == report.after
    assert report.difference == 0
    assert 0 < report.compared_nodes < 10
    assert len({node.name for node in simplified.graph}) == after


def test_the_simplified_graph_gives_the_same_logits(graph: ir.Model, tmp_path: Path) -> None:
    simplified, _ = simplify(graph)

    assert np.array_equal(run(graph, tmp_path, "plain.onnx"), run(simplified, tmp_path, "simplified.onnx"))
    onnx.checker.check_model(tmp_path / "simplified.onnx", full_check=True)


def test_names_stay_readable(graph: ir.Model) -> None:
    simplified, _ = simplify(graph)

    assert {n.name for n in graph.graph if n.op_type != "Slice"} == {
        n.name for n in simplified.graph if n.op_type != "Slice"
    }
    assert [n.name for n in simplified.graph if n.op_type == "Slice"] == [
        "fuse_pool4/slice",
        "fuse_pool3/slice",
        "score",
    ]


def test_weights_are_shared_and_not_copied(graph: ir.Model) -> None:
    simplified, _ = simplify(graph)

    for name in ("fc6.weight", "conv5_3.weight", "upscore8.weight"):
        assert simplified.graph.initializers[name].const_value is graph.graph.initializers[name].const_value


def test_a_second_application_changes_nothing(graph: ir.Model) -> None:
    once, _ = simplify(graph)

    twice, report = simplify(once)

    assert report.before == report.after
    assert (report.difference, report.compared_nodes) == (None, 0)
    assert [n.name for n in twice.graph] == [n.name for n in once.graph]


def broken(change: Callable[[onnx.ModelProto], None]) -> Callable[[bytes], bytes]:
    """A simplifier that says "ok" and has broken something."""
    real = simplifier.simplified

    def simplified(model: bytes) -> bytes:
        found = onnx.ModelProto.FromString(real(model))
        change(found)
        return bytes(found.SerializeToString())

    return simplified


def shift_a_crop(model: onnx.ModelProto) -> None:
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    for name in last.input[1:3]:
        initializer = next(t for t in model.graph.initializer if t.name == name)
        moved = onnx.numpy_helper.to_array(initializer) + 1
        initializer.CopyFrom(onnx.numpy_helper.from_array(moved, name))


def swap_two_weights(model: onnx.ModelProto) -> None:
    for node in model.graph.node:
        if node.name in ("conv5_1", "conv5_2"):
            node.input[1] = {"conv5_1.weight": "conv5_2.weight", "conv5_2.weight": "conv5_1.weight"}[node.input[1]]


def drop_a_relu(model: onnx.ModelProto) -> None:
    relu = next(node for node in model.graph.node if node.name == "relu4_2")
    for node in model.graph.node:
        node.input[:] = [relu.input[0] if name == relu.output[0] else name for name in node.input]
    model.graph.node.remove(relu)


@pytest.mark.parametrize("change", [shift_a_crop, swap_two_weights, drop_a_relu])
def test_a_broken_simplification_is_rolled_back(
    graph: ir.Model, monkeypatch: pytest.MonkeyPatch, change: Callable[[onnx.ModelProto], None]
) -> None:
    monkeypatch.setattr(simplifier, "simplified", broken(change))

    kept, report = simplify(graph)

    assert kept is graph
    assert report.before == report.after
    assert str(report.refused).startswith("the graph differs from the plain one by ")


def test_a_simplified_graph_of_another_shape_is_rolled_back(graph: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def shorten(model: onnx.ModelProto) -> None:
        last = next(node for node in model.graph.node if node.output[0] == "logits")
        ends = next(t for t in model.graph.initializer if t.name == last.input[2])
        ends.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(ends) - 1, ends.name))
        for dim in model.graph.output[0].type.tensor_type.shape.dim[2:]:
            dim.dim_value -= 1

    monkeypatch.setattr(simplifier, "simplified", broken(shorten))

    kept, report = simplify(graph)

    assert kept is graph
    assert "shape of logits" in str(report.refused)


def test_an_invalid_graph_is_rolled_back(graph: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(model: onnx.ModelProto) -> None:
        model.graph.node[3].input[0] = "nowhere"

    monkeypatch.setattr(simplifier, "simplified", broken(cut))

    kept, report = simplify(graph)

    assert kept is graph
    assert "nowhere" in str(report.refused)


def test_a_simplifier_that_fails_is_reported(graph: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(_: bytes) -> bytes:
        raise simplifier.SimplifierError("no such luck")

    monkeypatch.setattr(simplifier, "simplified", fail)

    assert simplify(graph)[1].refused == "onnxsim: no such luck"


def test_a_graph_that_grows_is_rolled_back(graph: ir.Model, monkeypatch: pytest.MonkeyPatch) -> None:
    def grow(model: onnx.ModelProto) -> None:
        model.graph.initializer.append(onnx.numpy_helper.from_array(np.zeros(20_000, np.float32), "folded"))

    monkeypatch.setattr(simplifier, "simplified", broken(grow))

    kept, report = simplify(graph)

    assert kept is graph
    assert re.fullmatch(r"the graph grew by 7\d{4} bytes, more than 65536", str(report.refused))


def parsed(body: str, inputs: str = "float[1,2,4,4] x", outputs: str = "float[1,2,4,4] y") -> ir.Model:
    text = f'<ir_version: 10, opset_import: ["": 18]> g ({inputs}) => ({outputs}) {{ {body} }}'
    return ir.serde.deserialize_model(onnx.parser.parse_model(text))


def test_equal_structure_is_proven_without_running() -> None:
    found = compare_graphs(parsed("a = Relu(x) y = Neg(a)"), parsed("b = Relu(x) y = Neg(b)"))

    assert found == Difference(0, 0.0, ())


def test_only_what_differs_is_run() -> None:
    before = parsed("a = Relu(x) b = Abs(a) y = Add(b, b)")
    after = parsed("a = Relu(x) b = Abs(a) t = Add(b, b) y = Identity(t)")

    found = compare_graphs(before, after)

    assert found.compared_nodes == 2
    assert found.relative_error == 0


@pytest.mark.parametrize(("body", "equal"), [
    ("a = Relu(x) y = Add(a, a)", True),
    ("y0 = Relu(x) y = Add(y0, x)", False),
    ("a = Relu(x) y = Mul(a, a)", False),
    ("a = Abs(x) y = Add(a, a)", False),
])  # fmt: skip
def test_numbers_decide_where_structure_does_not(body: str, equal: bool) -> None:
    found = compare_graphs(parsed("a = Relu(x) b = Identity(a) y = Add(a, b)"), parsed(body))

    assert (found.relative_error < 1e-6) == equal


def test_large_constants_are_compared_in_full() -> None:
    """Printing an array of more than 1,000 values leaves out the middle."""

    def added(middle: float) -> ir.Model:
        values = np.zeros((1, 2, 64, 64), np.float32)
        values[0, 1, 0, 0] = middle
        constant = onnx.helper.make_node("Constant", [], ["c"], value=onnx.numpy_helper.from_array(values))
        model = parsed("y = Add(x, c)", "float[1,2,64,64] x, float[1,2,64,64] c", "float[1,2,64,64] y")
        proto = ir.to_proto(model)
        proto.graph.node.insert(0, constant)
        del proto.graph.input[1]
        return ir.serde.deserialize_model(proto)

    assert compare_graphs(added(1), added(1)).compared_nodes == 0
    assert compare_graphs(added(1), added(2)).relative_error > 0.01


def test_attributes_count() -> None:
    before = parsed("a = LeakyRelu<alpha = 0.1>(x) y = Neg(a)")
    after = parsed("a = LeakyRelu<alpha = 0.2>(x) y = Neg(a)")

    assert compare_graphs(before, after).relative_error > 0.01


def test_an_output_missing_is_a_parity_error() -> None:
    with pytest.raises(ParityError, match=r"outputs.*\by\b.*\bz\b"):
        compare_graphs(parsed("y = Relu(x)"), parsed("z = Neg(x)", outputs="float[1,2,4,4] z"))
