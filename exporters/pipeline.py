"""From a checkpoint to a verified bundle: build, export, simplify, rewrite, reduce, compare, write."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporters.export_options import ExportOptions
from exporters.heads import with_heads
from exporters.naming import name_after_nodes
from exporters.onnx import export_graph
from exporters.optimize import Optimize
from exporters.proof import Reference, check_graph, compared_inputs, require_parity, run_reference, write_photos
from exporters.reduce import Reduction, calibration_inputs, reduced
from exporters.rewrite import Rewriting, exact_passes, rewrite
from exporters.simplify import Simplification, simplify
from exporters.target import target_of_this_machine
from fcn_deploy.bundle import MANIFEST_FILE, MODEL_FILE, PHOTOS_FOLDER, write_manifest
from fcn_deploy.geometry import check_fits
from fcn_deploy.model_info import ModelInfo, NetworkSpec, Precision, Provenance
from fcn_deploy.models.checkpoints import read_checkpoint
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.weights import load_network, untrained_network
from fcn_deploy.onnx_file import write_model
from fcn_deploy.parity.inputs import ParityInput
from fcn_deploy.parity.report import ParityReport
from fcn_deploy.staging import staged_directory
from fcn_deploy.steps import OnStep, quietly
from fcn_deploy.verification import rebuild
from fcn_deploy.version import package_versions


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
        reduction: what reduced precision took, or None in float32.
        float_bytes: the weights before they were reduced.
        parity: the comparison with PyTorch, or None when it was not asked for.
    """

    path: Path
    info: ModelInfo
    input_shape: tuple[int, int, int, int]
    file_bytes: int
    simplification: Simplification | None
    rewriting: Rewriting | None
    reduction: Reduction | None
    float_bytes: int
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
            "reduction": self.reduction.to_dict() if self.reduction else None,
            "float_bytes": self.float_bytes,
            "parity": self.parity.to_dict() if self.parity else None,
        }


@dataclass(frozen=True)
class _Exported:
    """What the first half of an export leaves behind once the network is gone from memory.

    Attributes:
        info: the model's facts.
        simplification: what became of the graph, or None when it was left as exported.
        rewriting: what the exact rewrites did, or None when there were none.
        reduction: what reduced precision took, or None in float32.
        float_bytes: the weights before they were reduced.
        reference: what the network computed, or None when nothing is to be verified.
    """

    info: ModelInfo
    simplification: Simplification | None
    rewriting: Rewriting | None
    reduction: Reduction | None
    float_bytes: int
    reference: Reference | None


def export(options: ExportOptions, on_step: OnStep = quietly) -> ExportResult:
    """Write a bundle: build the network, export it, rewrite and reduce the graph, compare it with PyTorch, publish.

    Raises:
        UsageError, SizeError: an option out of its bounds.
        CheckpointError: the checkpoint is unreadable, unsafe or of another network.
        OutputError: the output exists already or cannot be written.
        ImageError: a calibration image cannot be used.
        ParityError: the ONNX file does not compute the network; nothing is written then.
    """
    calibration = calibration_inputs(options.precision, options.onnx.shape)
    with staged_directory(options.output, marker=MANIFEST_FILE, force=options.force) as staging:
        exported = _write_graph(options, calibration, staging / MODEL_FILE, on_step)
        # The exporter leaves reference cycles that keep the network's 540 MB until they are collected.
        gc.collect()
        parity = None
        if exported.reference is not None:
            again = partial(rebuild, exported.info, options.weights.checkpoint)
            parity = require_parity(exported.info, exported.reference, staging / MODEL_FILE, again, on_step)
        with on_step("hash and write the manifest"):
            write_manifest(staging, _facts(options, exported, parity))
            size = (staging / MODEL_FILE).stat().st_size
    made = exported.simplification, exported.rewriting, exported.reduction, exported.float_bytes, parity
    return ExportResult(options.output, exported.info, options.onnx.shape, size, *made)


def _write_graph(options: ExportOptions, calibration: Sequence[ParityInput], path: Path, on_step: OnStep) -> _Exported:
    """Write the graph and run the reference; nothing refers to the network any more when this returns."""
    network, info = _build(options, on_step)
    with on_step(f"export to ONNX, opset {options.onnx.opset}"):
        graph = export_graph(network, options.onnx)
        graph.graph.name = f"fcn{options.variant}"
        graph.metadata_props.update(info.to_metadata())
    graph, simplification, rewriting = _optimized(graph, options, on_step)
    graph = with_heads(graph, options.image_input, options.head)
    target = options.target or target_of_this_machine()
    float_bytes = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    if info.precision is Precision.INT8:
        calibration = write_photos(calibration, path.parent / PHOTOS_FOLDER, options.onnx.shape)
    wanted = replace(options.precision, min_agreement=info.min_agreement)
    graph, reduction = reduced(graph, wanted, calibration, target, on_step)
    with on_step("check and write model.onnx"):
        name_after_nodes(graph)
        check_graph(graph)
        write_model(graph, path)
    reference = None
    if options.verify:
        inputs = compared_inputs(info, options.onnx.shape, calibration)
        reference = run_reference(network, inputs, options.onnx.shape, on_step)
    return _Exported(info, simplification, rewriting, reduction, float_bytes, reference)


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
    target = options.target or target_of_this_machine()
    graph, rewriting = rewrite(graph, target, exact_passes(target, options.precision.precision), on_step)
    return graph, simplification, rewriting


def _build(options: ExportOptions, on_step: OnStep) -> tuple[FCN, ModelInfo]:
    weights, checkpoint = options.weights, None
    if weights.checkpoint is not None:
        with on_step(f"read checkpoint {weights.checkpoint}"):
            checkpoint = read_checkpoint(weights.checkpoint)
    spec = options.network(checkpoint)
    check_fits(options.onnx.height, options.onnx.width, spec.variant, spec.geometry)
    with on_step(f"build {spec}"):
        if checkpoint is None:
            network, provenance = untrained_network(spec, weights)
        else:
            network, provenance = load_network(spec, checkpoint, weights)
    return network, _info(options, spec, provenance, checkpoint.class_names if checkpoint else ())


def _info(options: ExportOptions, spec: NetworkSpec, provenance: Provenance, names: tuple[str, ...]) -> ModelInfo:
    precision = options.precision.precision
    return ModelInfo(
        spec,
        provenance,
        options.image_input,
        options.head,
        precision,
        package_versions(),
        names,
        options.precision.agreement(provenance),
    )


def _facts(options: ExportOptions, exported: _Exported, parity: ParityReport | None) -> dict[str, Any]:
    return {
        "model": exported.info.to_metadata(),
        "input_shape": list(options.onnx.shape),
        "opset": options.onnx.opset,
        "optimize": str(options.optimize),
        "target": str(exported.rewriting.target) if exported.rewriting else None,
        "simplification": asdict(exported.simplification) if exported.simplification else None,
        "rewriting": exported.rewriting.to_dict() if exported.rewriting else None,
        "reduction": exported.reduction.to_dict() if exported.reduction else None,
        "parity": parity.to_dict() if parity else None,
        "command": list(options.command),
    }
