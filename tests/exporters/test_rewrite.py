from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest

import fcn_deploy as fd
from exporters.onnx import OnnxOptions, export_graph
from exporters.passes.cost import machine_of
from exporters.passes.edit import Rewrite
from exporters.rewrite import PassReport, exact_passes, rewrite
from exporters.simplify import simplify
from fcn_deploy.choices import Target
from fcn_deploy.graph import typed_skeleton
from fcn_deploy.models.weights import random_network
from tests.exporters.passes.graphs import operators, parsed, run, worst


@pytest.fixture(scope="module")
def graph() -> ir.Model:
    network = random_network(fd.NetworkSpec(fd.Variant.FCN8S, num_classes=5, channel_divisor=8), 0)
    return simplify(export_graph(network, OnnxOptions(64, 64)))[0]


@pytest.mark.parametrize("target", Target)
def test_all_rewrites_for_every_target(graph: ir.Model, tmp_path: Path, target: Target) -> None:
    before = operators(graph)

    fast, report = rewrite(graph, target)

    assert operators(graph) == before
    assert report.target is target
    further = {Target.CPU: ["fast-convolution"], Target.CUDA: ["relu-after-pool"], Target.TENSORRT: []}[target]
    assert [one.name for one in report.passes] == ["live-window", "fold-crop", "upsample", *further]
    assert all(one.undone is None and one.difference <= 1e-6 for one in report.passes)
    assert report.passes[0].applied == (report.after.multiply_adds < report.before.multiply_adds)
    if report.passes[0].applied:
        assert report.passes[0].inputs == ("astronaut.jpg", "noise")
        assert report.after.moved_bytes < report.before.moved_bytes
    image = {"image": np.random.default_rng(0).normal(0, 60, (1, 3, 64, 64)).astype(np.float32)}
    assert worst(run(graph, tmp_path, image), run(fast, tmp_path, image)) <= 1e-6
    onnx.checker.check_model(typed_skeleton(fast), full_check=True)


@pytest.mark.parametrize(("precision", "moved"), [
    (fd.Precision.FP32, True), (fd.Precision.FP16, True), (fd.Precision.BF16, True), (fd.Precision.INT8, False),
])  # fmt: skip
def test_relus_go_behind_pools_where_they_take_a_pass_of_their_own(precision: fd.Precision, moved: bool) -> None:
    names = {target: [one.name for one in exact_passes(target, precision)] for target in Target}

    assert ("relu-after-pool" in names[Target.CUDA]) is moved
    assert "relu-after-pool" not in names[Target.CPU] + names[Target.TENSORRT]


def test_copies_weigh_more_where_tensor_cores_compute() -> None:
    """Twice as many elements a second, but 15 times as many multiply-adds."""
    single, half = (machine_of(Target.CUDA, p) for p in (fd.Precision.FP32, fd.Precision.FP16))

    assert half.multiply_adds_per_s / single.multiply_adds_per_s == pytest.approx(990 / 67, rel=0.01)
    assert single.copy_seconds(1e9) == 2 * half.copy_seconds(1e9)
    assert machine_of(Target.CUDA, fd.Precision.BF16) == half
    assert machine_of(Target.CPU, fd.Precision.FP16) == machine_of(Target.CPU, fd.Precision.FP32)


def test_a_second_application_changes_nothing(graph: ir.Model) -> None:
    once, first = rewrite(graph, Target.CPU)

    twice, report = rewrite(once, Target.CPU)

    assert any(one.applied for one in first.passes)
    assert not any(one.applied for one in report.passes)
    assert [node.name for node in twice.graph] == [node.name for node in once.graph]
    assert report.before == report.after == first.after


class Broken(Rewrite):
    """Says that it changes nothing but names, and does what it was made to do to the first node of a kind."""

    name = "broken"

    def __init__(self, operator: str, damage: Any) -> None:
        self.operator, self.damage = operator, damage

    def find(self, model: ir.Model) -> Sequence[ir.Node]:
        return [next(node for node in model.graph if node.op_type == self.operator)]

    def check(self, found: ir.Node) -> None:
        del found

    def rewrite(self, model: ir.Model, found: ir.Node) -> str:
        self.damage(model, found)
        return "all is well"


def drop(_: ir.Model, node: ir.Node) -> None:
    assert node.inputs[0] is not None
    node.outputs[0].replace_all_uses_with(node.inputs[0])


def widen_the_crop(model: ir.Model, node: ir.Node) -> None:
    starts = node.inputs[1]
    assert starts is not None
    assert starts.const_value is not None
    starts.const_value = ir.tensor(starts.const_value.numpy() + 1)
    ends = node.inputs[2]
    assert ends is not None
    assert ends.const_value is not None
    ends.const_value = ir.tensor(ends.const_value.numpy() + 1)


def pad_less(_: ir.Model, node: ir.Node) -> None:
    node.attributes.add(ir.AttrInt64s("pads", [99, 99, 99, 99]))


def change_the_output(model: ir.Model, node: ir.Node) -> None:
    model.graph.outputs[0] = node.outputs[0]


@pytest.mark.parametrize(("operator", "damage", "reason"), [
    ("Relu", drop, "the rewritten graph differs from the one before by "),
    ("Slice", widen_the_crop, "the rewritten graph differs from the one before by "),
    ("Conv", pad_less, "ONNX's checker refuses the graph"),
    ("Conv", change_the_output, "outputs: logits before the rewrite, conv1_1 after it"),
])  # fmt: skip
def test_a_rewrite_that_changes_anything_is_undone(graph: ir.Model, operator: str, damage: Any, reason: str) -> None:
    kept, report = rewrite(graph, Target.CPU, passes=[Broken(operator, damage)])

    (one,) = report.passes
    assert str(one.undone).startswith(reason)
    assert not one.applied
    assert operators(kept) == operators(graph)
    assert report.before == report.after


def test_a_rewrite_that_differs_on_the_photo_is_not_run_on_noise() -> None:
    model = parsed("t = Relu(x) y = Neg(t)", "float[1,3,8,8] x", "float[1,3,8,8] y")

    _, report = rewrite(model, Target.CPU, passes=[Broken("Relu", drop)])

    assert report.passes[0].undone
    assert report.passes[0].inputs == ("astronaut.jpg",)


def test_a_difference_that_is_no_number_is_undone() -> None:
    """A division that gives NaN compares as neither larger nor smaller than any bound."""
    model = parsed("t = Relu(x) y = Div(t, one)", "float[1,2,4,4] x", "float[1,2,4,4] y", one=np.array(1, np.float32))

    def divide_by_nothing(model: ir.Model, node: ir.Node) -> None:
        divisor = node.inputs[1]
        assert divisor is not None
        divisor.const_value = ir.tensor(np.float32(0))

    _, report = rewrite(model, Target.CPU, passes=[Broken("Div", divide_by_nothing)])

    assert report.passes[0].undone


def test_an_undone_rewrite_does_not_count_as_applied() -> None:
    assert not PassReport("x", (), undone="no").applied
