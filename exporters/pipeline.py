"""From a checkpoint to a verified bundle: build, export, simplify, rewrite, compare, write."""

import gc
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir

from exporters.heads import with_heads
from exporters.naming import name_after_nodes
from exporters.onnx import OnnxOptions, export_graph
from exporters.optimize import Optimize, Target
from exporters.rewrite import Rewriting, rewrite
from exporters.simplify import Simplification, simplify
from exporters.target import target_of_this_machine
from fcn_deploy.bundle import MANIFEST_FILE, MODEL_FILE, write_manifest
from fcn_deploy.errors import ParityError
from fcn_deploy.geometry import Geometry, Variant, check_fits
from fcn_deploy.graph import typed_skeleton
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.model_info import Head, ImageInput, ModelInfo, NetworkSpec
from fcn_deploy.models.checkpoints import read_checkpoint
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.weights import WeightsOptions, load_network, untrained_network
from fcn_deploy.onnx_file import write_model
from fcn_deploy.parity.inputs import ParityInput, Shape, noise_input, photo_input, pixel_noise_input
from fcn_deploy.parity.report import ParityReport
from fcn_deploy.parity.run import Outputs, compare_all, run_all
from fcn_deploy.parity.tolerance import TIERS
from fcn_deploy.runtime.eager import EagerRunner
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.staging import staged_directory
from fcn_deploy.steps import OnStep, quietly
from fcn_deploy.version import package_versions


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and where to.

    Attributes:
        variant: which FCN.
        output: the bundle's directory.
        geometry: how pools round; None takes the checkpoint family's own, floor without a checkpoint.
        num_classes: K.
        channel_divisor: divides every width; more than 1 makes a quick stand-in for the real network.
        weights: the checkpoint, or the seed of random weights.
        onnx: shapes and opset.
        optimize: how much the graph is rewritten.
        target: what the rewrites are chosen for; None takes what the machine has.
        head: what the graph gives.
        image_input: what the graph takes.
        verify: compare with PyTorch before the bundle is written.
        force: replace an existing bundle.
        command: what was typed, for the record.

    Raises:
        UsageError: the number of classes or the divisor is out of its bounds.
    """

    variant: Variant
    output: Path
    geometry: Geometry | None = None
    num_classes: int = 21
    channel_divisor: int = 1
    weights: WeightsOptions = field(default_factory=WeightsOptions)
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    optimize: Optimize = Optimize.EXACT
    target: Target | None = None
    head: Head = Head.LOGITS
    image_input: ImageInput = ImageInput.FLOAT
    verify: bool = True
    force: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.network(self.geometry or Geometry.FLOOR)

    def network(self, geometry: Geometry) -> NetworkSpec:
        """The network to build once its geometry is settled."""
        return NetworkSpec(self.variant, geometry, self.num_classes, self.channel_divisor)


@dataclass(frozen=True)
class ExportResult:
    """A written bundle.

    Attributes:
        path: its directory.
        info: the model's facts.
        input_shape: N x 3 x H x W.
        file_bytes: size of model.onnx.
        simplification: what became of the graph, or None when it was left as exported.
        rewriting: what the exact rewrites did, or None when there were none.
        parity: the comparison with PyTorch, or None when it was not asked for.
    """

    path: Path
    info: ModelInfo
    input_shape: tuple[int, int, int, int]
    file_bytes: int
    simplification: Simplification | None
    rewriting: Rewriting | None
    parity: ParityReport | None

    def to_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        return {
            "path": str(self.path),
            "model": self.info.to_metadata(),
            "input_shape": list(self.input_shape),
            "file_bytes": self.file_bytes,
            "simplification": asdict(self.simplification) if self.simplification else None,
            "rewriting": self.rewriting.to_dict() if self.rewriting else None,
            "parity": self.parity.to_dict() if self.parity else None,
        }


@dataclass(frozen=True)
class _Exported:
    """What the first half of an export leaves behind once the network is gone from memory.

    Attributes:
        info: the model's facts.
        simplification: what became of the graph, or None when it was left as exported.
        rewriting: what the exact rewrites did, or None when there were none.
        reference_name: what the reference ran on.
        inputs: what the network was run on; empty when nothing is to be verified.
        references: its outputs, one per input.
    """

    info: ModelInfo
    simplification: Simplification | None
    rewriting: Rewriting | None
    reference_name: str
    inputs: tuple[ParityInput, ...]
    references: list[Outputs]


def export(options: ExportOptions, on_step: OnStep = quietly) -> ExportResult:
    """Write a bundle: build the network, export it, simplify and rewrite the graph, compare it with PyTorch, publish.

    Raises:
        UsageError, SizeError: an option out of its bounds.
        CheckpointError: the checkpoint is unreadable, unsafe or of another network.
        OutputError: the output exists already or cannot be written.
        ParityError: the ONNX file does not compute the network; nothing is written then.
    """
    with staged_directory(options.output, marker=MANIFEST_FILE, force=options.force) as staging:
        exported = _write_graph(options, staging / MODEL_FILE, on_step)
        # The exporter leaves reference cycles that keep the network's 540 MB until they are collected.
        gc.collect()
        parity = _check_parity(exported, staging / MODEL_FILE, on_step) if options.verify else None
        with on_step("hash and write the manifest"):
            write_manifest(staging, _facts(options, exported, parity))
            size = (staging / MODEL_FILE).stat().st_size
    made = exported.simplification, exported.rewriting, parity
    return ExportResult(options.output, exported.info, options.onnx.shape, size, *made)


def _write_graph(options: ExportOptions, path: Path, on_step: OnStep) -> _Exported:
    """Write the graph and run the reference; nothing refers to the network any more when this returns."""
    network, info = _build(options, on_step)
    with on_step(f"export to ONNX, opset {options.onnx.opset}"):
        graph = export_graph(network, options.onnx)
        graph.graph.name = f"fcn{options.variant}"
        graph.metadata_props.update(info.to_metadata())
    graph, simplification, rewriting = _optimized(graph, options, on_step)
    with on_step("check and write model.onnx"):
        graph = with_heads(graph, options.image_input, options.head)
        name_after_nodes(graph)
        _check_graph(graph)
        write_model(graph, path)
    runner = EagerRunner(network, options.onnx.shape)
    inputs = _inputs(options.onnx.shape, options.image_input) if options.verify else ()
    references = run_all(runner, inputs, on_step) if inputs else []
    return _Exported(info, simplification, rewriting, runner.name, inputs, references)


def _optimized(
    graph: ir.Model, options: ExportOptions, on_step: OnStep
) -> tuple[ir.Model, Simplification | None, Rewriting | None]:
    """The graph on the level asked for, and what became of it on the way."""
    if options.optimize is Optimize.NONE:
        return graph, None, None
    with on_step("simplify the graph and compare it with the plain one"):
        graph, simplification = simplify(graph)
    if options.optimize is Optimize.SIMPLIFY:
        return graph, simplification, None
    graph, rewriting = rewrite(graph, options.target or target_of_this_machine(), on_step=on_step)
    return graph, simplification, rewriting


def _check_graph(graph: ir.Model) -> None:
    """ONNX's own checker with full shape inference, on the graph as it is written.

    Raises:
        ParityError: the graph is not valid.
    """
    try:
        onnx.checker.check_model(typed_skeleton(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"ONNX's checker refuses the graph: {error}", remedy="Try --optimize none.") from error


def _build(options: ExportOptions, on_step: OnStep) -> tuple[FCN, ModelInfo]:
    weights, geometry, checkpoint = options.weights, options.geometry, None
    if weights.checkpoint is not None:
        with on_step(f"read checkpoint {weights.checkpoint}"):
            checkpoint = read_checkpoint(weights.checkpoint)
        geometry = geometry or checkpoint.family.geometry
    spec = options.network(geometry or Geometry.FLOOR)
    check_fits(options.onnx.height, options.onnx.width, spec.variant, spec.geometry)
    with on_step(f"build {spec}"):
        if checkpoint is None:
            network, provenance = untrained_network(spec, weights)
        else:
            network, provenance = load_network(spec, checkpoint, weights)
    return network, ModelInfo(spec, provenance, options.image_input, options.head, versions=package_versions())


def _inputs(shape: Shape, image_input: ImageInput) -> tuple[ParityInput, ...]:
    noise = pixel_noise_input if image_input is ImageInput.UINT8 else noise_input
    return photo_input(SAMPLE_PHOTO, shape), noise(0, shape)


def _check_parity(exported: _Exported, path: Path, on_step: OnStep) -> ParityReport:
    candidate = OrtRunner(path)
    outputs = run_all(candidate, exported.inputs, on_step)
    with on_step("compare the two"):
        comparisons = compare_all(exported.inputs, exported.references, outputs)
    report = ParityReport(exported.reference_name, candidate.name, TIERS["fp32"], comparisons)
    report.require()
    return report


def _facts(options: ExportOptions, exported: _Exported, parity: ParityReport | None) -> dict[str, Any]:
    return {
        "model": exported.info.to_metadata(),
        "input_shape": list(options.onnx.shape),
        "opset": options.onnx.opset,
        "optimize": str(options.optimize),
        "target": str(exported.rewriting.target) if exported.rewriting else None,
        "simplification": asdict(exported.simplification) if exported.simplification else None,
        "rewriting": exported.rewriting.to_dict() if exported.rewriting else None,
        "parity": parity.to_dict() if parity else None,
        "command": list(options.command),
    }
