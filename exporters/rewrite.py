"""Applies the exact rewrites one after the other: each is compared with the graph before, and undone if it differs."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.equivalence import Runs, check_graph, compare_graphs
from exporters.passes.cost import machine_of
from exporters.passes.edit import Rewrite, Site
from exporters.passes.fast_convolution import FastConvolution
from exporters.passes.fold_crop import FoldCrop
from exporters.passes.heads import LabelHead, PixelHead
from exporters.passes.live_window import LiveWindow
from exporters.passes.pools import ReluAfterPool
from exporters.passes.upsample import Upsample
from fcn_deploy.choices import Head, ImageInput, Precision, Target
from fcn_deploy.dependence import dependences
from fcn_deploy.errors import BundleError, ParityError, UsageError
from fcn_deploy.graph import infer_shapes, layers
from fcn_deploy.model_info import FIELD_KEY, LIVE_KEY, ModelInfo
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.nvidia import driver_cuda_version


@dataclass(frozen=True)
class Totals:
    """The cost of one run of a graph."""

    nodes: int  # number of nodes
    multiply_adds: int  # of all convolutions
    moved_bytes: int  # of every node's inputs and outputs, weights among them, each once


@dataclass(frozen=True)
class PassReport:
    """The outcome of one rewrite."""

    name: str  # of the rewrite
    sites: tuple[Site, ...]  # the occurrences of its pattern, with the change or the reason for none
    undone: str | None = None  # why the rewritten graph is not used, or None
    compared_nodes: int = 0  # nodes that differ in structure and were re-run to compare both graphs
    difference: float = 0.0  # largest error over its value's range between the two graphs; 0 when equal by structure
    inputs: tuple[str, ...] = ()  # names of the inputs they were run on, up to the first on which they differ

    @property
    def applied(self) -> bool:
        """Return whether the graph was changed and the change was kept."""
        return self.undone is None and any(site.applied for site in self.sites)


@dataclass(frozen=True)
class Rewriting:
    """The outcome of all rewrites of a graph.

    Attributes:
        target: the device that the rewrites were chosen for.
        before: one run of the graph as it was given.
        after: one run of the graph as it is now.
        passes: the rewrites in order.
    """

    target: Target
    before: Totals
    after: Totals
    passes: tuple[PassReport, ...]

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON."""
        return asdict(self) | {"target": str(self.target)}


def exact_passes(target: Target, precision: Precision = Precision.FP32) -> tuple[Rewrite, ...]:
    """Return the exact rewrites, in the order in which they help one another, of a float32 graph for `target`.

    `precision` is what the graph is to be converted to later.
    """
    machine = machine_of(target, precision)
    passes: tuple[Rewrite, ...] = (LiveWindow(machine), FoldCrop(machine), Upsample(machine))
    # 8-bit layers end in a ReLU right behind their convolution.
    if not machine.fuses_relus and precision is not Precision.INT8:
        passes += (ReluAfterPool(),)
    # Halves lose too much in transforms, and products of bytes are cheap already.
    if machine.products_per_s and precision is Precision.FP32:
        passes += (FastConvolution(machine),)
    return passes


def rewrite(
    model: ir.Model, target: Target, passes: Sequence[Rewrite] | None = None, on_step: OnStep = quietly
) -> tuple[ir.Model, Rewriting]:
    """Apply exact rewrites to a copy of `model` that shares its weights.

    Every rewritten graph passes ONNX's checker with full shape inference and computes what the graph before it does, on
    noise and on a photo; where it does not, the rewrite is undone, and the report says why.

    Raises:
        BundleError: the model itself is not valid.
    """
    current, reports = model.clone(), []
    infer_shapes(current)
    record_dependence(current)
    before = totals(current)
    for one in passes if passes is not None else exact_passes(target):
        with on_step(f"rewrite: {one.name}"):
            current, report = _applied(one, current)
        reports.append(report)
    return current, Rewriting(target, before, totals(current), tuple(reports))


def record_dependence(model: ir.Model) -> None:
    """Record at each node what its map depends on: rewritten graphs compute it in ways that no longer show."""
    found = dependences(model)
    for node in model.graph:
        depends = found.get(str(node.outputs[0].name)) if node.outputs else None
        if depends is not None:
            node.metadata_props[FIELD_KEY] = " ".join(map(str, depends.receptive_field))
            node.metadata_props[LIVE_KEY] = f"{depends.live:.6f}"


def _applied(one: Rewrite, model: ir.Model, runs: Runs | None = None) -> tuple[ir.Model, PassReport]:
    candidate, runs = model.clone(), {} if runs is None else runs
    try:
        result = one.call(candidate)
    except Exception as error:  # graphs of others hold what no rewrite expects; the graph before is still there
        return model, PassReport(one.name, (), undone=f"it failed: {type(error).__name__}: {error}")
    if not result.modified:
        return model, PassReport(one.name, result.sites)
    RemoveUnusedNodesPass()(candidate)
    report = _compared(one, model, candidate, result.sites, runs)
    if report.undone is None:
        return candidate, report
    careful = one.more_careful()
    return _applied(careful, model, runs) if careful is not None else (model, report)


def _compared(one: Rewrite, model: ir.Model, candidate: ir.Model, sites: tuple[Site, ...], runs: Runs) -> PassReport:
    try:
        check_graph(candidate)
        found = compare_graphs(model, candidate, inner=one.same_sums, runs=runs)
    except (ParityError, BundleError) as error:
        return PassReport(one.name, sites, undone=error.problem)
    wrong = found.beyond_rounding
    undone = f"the rewritten graph differs from the one before by {wrong}" if wrong else None
    return PassReport(one.name, sites, undone, found.compared_nodes, found.relative_error, found.inputs)


def totals(model: ir.Model) -> Totals:
    """Count the cost of one run of a graph."""
    found = layers(model)
    return Totals(len(found), sum(n.multiply_adds for n in found), sum(n.moved_bytes for n in found))


def with_heads(model: ir.Model, info: ModelInfo) -> ir.Model:
    """Add the input and output heads that `info` states to a copy of `model` that shares its weights.

    Raises:
        UsageError: the graph cannot have such a head; says why.
    """
    wanted: list[Rewrite] = [PixelHead(info.preprocessing)] if info.image_input is ImageInput.UINT8 else []
    wanted += [LabelHead(info.boundary)] if info.head is Head.LABELS else []
    changed = model.clone() if wanted else model
    for one in wanted:
        refused = [site for site in one.call(changed).sites if not site.applied]
        if refused:
            raise UsageError(f"no {one.name} head: {refused[0].reason}", remedy="Omit --head and --image-input.")
    return changed


def target_of_this_machine() -> Target:
    """Return CUDA where an NVIDIA driver is installed, the CPU elsewhere."""
    return Target.CPU if driver_cuda_version() is None else Target.CUDA
