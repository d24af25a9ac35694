"""From a checkpoint to a verified bundle: build, export, simplify, rewrite, reduce, compare, write."""

import gc
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir
from PIL import Image
from torch import nn

from exporters.equivalence import check_graph
from exporters.labels import LabelOptions
from exporters.onnx import OnnxOptions, check_opset, graph_of, name_after_nodes, reason_of, trace_network
from exporters.precision.int8 import BUNDLED_PHOTOS
from exporters.precision.options import PrecisionOptions
from exporters.precision.reduce import Reduction, calibration_inputs, reduce_precision
from exporters.rewrite import Rewriting, exact_passes, rewrite, target_of_this_machine, with_heads
from exporters.simplify import Simplification, simplify
from fcn_deploy.artifact.bundle import MODEL_FILE, PHOTOS_FOLDER, RebuildOptions, bundle_files, write_manifest
from fcn_deploy.choices import Geometry, Head, ImageInput, Optimize, Precision, Target, Variant
from fcn_deploy.errors import FcnDeployError, ModuleError, UsageError
from fcn_deploy.geometry import check_fits
from fcn_deploy.installation import package_versions
from fcn_deploy.model_info import ModelInfo, ModuleSpec, NetworkSpec, Provenance
from fcn_deploy.models.checkpoints import Checkpoint, read_checkpoint
from fcn_deploy.models.logits import load_module
from fcn_deploy.models.modules import ModuleOptions
from fcn_deploy.models.rebuild import rebuild
from fcn_deploy.models.weights import WeightsOptions, load_network, untrained_network
from fcn_deploy.onnx_file import write_model
from fcn_deploy.parity.bisect import compare_layers
from fcn_deploy.parity.inputs import ParityInput, Shape, parity_inputs, photo_input
from fcn_deploy.parity.report import ParityReport
from fcn_deploy.parity.tolerance import tier_of
from fcn_deploy.parity.verify import WORST_INPUT_FILE, Outputs, compare_all, run_all
from fcn_deploy.preprocessing import Preprocessing
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.eager import EagerRunner
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.storage import staged_directory


@dataclass(frozen=True)
class ExportOptions:
    """The options of an export.

    Attributes:
        variant: which FCN; None for a module.
        output: the bundle's directory.
        module: the user's own network, in place of a variant; its code is run.
        geometry: how pools round; None uses the checkpoint family's default, or floor without a checkpoint.
        num_classes: K; None uses the checkpoint's, or 21 without one.
        channel_divisor: divides every channel count; more than 1 makes a small test network. None uses the
            checkpoint's, or 1 without one.
        weights: the checkpoint, or the seed of random weights.
        onnx: shapes and opset.
        optimize: the optimization level of the graph.
        target: the device that rewrites are chosen for; None uses this machine's.
        head: the graph's output.
        image_input: the graph's input.
        precision: the graph's arithmetic.
        preprocessing: how pixels become the network's input; None is that of the published FCNs, and is refused for a
            module, because nothing else would show that it is wrong.
        labels: what the labels mean.
        verify: compare with PyTorch before the bundle is written.
        force: replace an existing bundle.
        command: the command line, for the manifest.

    Raises:
        UsageError: the number of classes or the divisor is out of its bounds, or the opset lacks the arithmetic.
    """

    variant: Variant | None
    output: Path
    module: ModuleOptions | None = None
    geometry: Geometry | None = None
    num_classes: int | None = None
    channel_divisor: int | None = None
    weights: WeightsOptions = field(default_factory=WeightsOptions)
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    optimize: Optimize = Optimize.EXACT
    target: Target | None = None
    head: Head = Head.LOGITS
    image_input: ImageInput = ImageInput.FLOAT
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    preprocessing: Preprocessing | None = None
    labels: LabelOptions = field(default_factory=LabelOptions)
    verify: bool = True
    force: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        check_opset(self.onnx.opset, self.precision.precision)
        if (self.variant is None) is (self.module is None):
            given = "neither is" if self.variant is None else "both are"
            raise UsageError(
                f"an export is of a variant or of a module, and {given} given",
                remedy=f"Pass --variant {', '.join(Variant)}, or --module.",
            )
        if self.variant is not None:
            self.fcn(self.variant, None)
            return
        options = {"geometry": self.geometry, "num-classes": self.num_classes, "channel-divisor": self.channel_divisor}
        for name in (name for name, value in options.items() if value is not None):
            raise UsageError(f"--{name} is for FCNs, not for modules", remedy="Omit it, or pass --module-args.")
        if self.preprocessing is None and self.module is not None:
            raise UsageError(
                f"how pixels become the input of {self.module.source} is not stated",
                remedy="Pass --preprocessing caffe, imagenet or unit; --scale, --mean and --std change single values.",
            )

    @property
    def input_preprocessing(self) -> Preprocessing:
        """The pre-processing, or that of the published FCNs."""
        return self.preprocessing or Preprocessing()

    def fcn(self, variant: Variant, checkpoint: Checkpoint | None) -> NetworkSpec:
        """Return the FCN to build, from the options, the checkpoint, or the defaults, in this order."""
        found = NetworkSpec(variant)
        if checkpoint is not None:
            found = replace(
                found,
                geometry=checkpoint.family.geometry,
                num_classes=checkpoint.num_classes or found.num_classes,
                channel_divisor=checkpoint.channel_divisor,
            )
        names = "geometry", "num_classes", "channel_divisor"
        return replace(found, **{name: value for name in names if (value := getattr(self, name)) is not None})


# A network, its facts, where its weights came from, and the names of its classes, if they are known.
Built = tuple[nn.Module, NetworkSpec | ModuleSpec, Provenance, tuple[str, ...]]
# Calibration photos are stored as JPEG files of this quality.
_JPEG_QUALITY = 95


@dataclass(frozen=True)
class ExportResult:
    """A written bundle.

    Attributes:
        path: its directory.
        info: the model's facts.
        input_shape: N x 3 x H x W.
        file_bytes: size of model.onnx.
        simplification: what simplifying changed, or None when the graph was left as exported.
        rewriting: what the exact rewrites did, or None when there were none.
        reduction: how the precision was reduced, or None in float32.
        float_bytes: size of the weights before the precision was reduced.
        parity: the comparison with PyTorch, or None when it was not requested.
    """

    path: Path
    info: ModelInfo
    input_shape: Shape
    file_bytes: int
    simplification: Simplification | None
    rewriting: Rewriting | None
    reduction: Reduction | None
    float_bytes: int
    parity: ParityReport | None = None

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON."""
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
class _Reference:
    """PyTorch's outputs; they do not keep the network in memory."""

    name: str  # name of the runtime
    inputs: tuple[ParityInput, ...]  # the inputs
    outputs: list[Outputs]  # one per input


def export(options: ExportOptions, on_step: OnStep = quietly) -> ExportResult:
    """Write a bundle: build the network, export it, rewrite and reduce the graph, compare it with PyTorch, publish.

    Raises:
        UsageError, SizeError: an option out of its bounds.
        CheckpointError: the checkpoint is unreadable, unsafe or of another network.
        OutputError: the output exists already or cannot be written.
        ImageError: a calibration image cannot be used.
        ParityError: the ONNX file does not compute the network; nothing is written.
    """
    calibration = calibration_inputs(options.precision, options.onnx.shape, options.input_preprocessing)
    with staged_directory(options.output, own_files=_own_files, force=options.force) as staging:
        result, reference = _write_graph(options, calibration, staging / MODEL_FILE, on_step)
        # The exporter leaves reference cycles that keep the network's 540 MB until they are collected.
        gc.collect()
        if reference is not None:
            parity = _prove(result.info, reference, staging / MODEL_FILE, options, on_step)
            result = replace(result, parity=parity)
        with on_step("hash and write the manifest"):
            write_manifest(staging, _manifest(options, result))
    return result


def _own_files(path: Path) -> set[str]:
    """Return the files of a bundle, and the input that `verify` saves beside its model."""
    return bundle_files(path) | {WORST_INPUT_FILE}


def _write_graph(
    options: ExportOptions, calibration: Sequence[ParityInput], path: Path, on_step: OnStep
) -> tuple[ExportResult, _Reference | None]:
    """Write the graph and run the reference; the network is no longer referenced when this returns."""
    network, info = _build(options, on_step)
    with on_step(f"export to ONNX, opset {options.onnx.opset}"):
        graph = _exported(network, info, options)
        graph.graph.name = f"fcn{options.variant}" if options.variant is not None else info.network.name
        graph.metadata_props.update(info.to_metadata())
    target = options.target or target_of_this_machine()
    graph, simplification, rewriting = _optimized(graph, options, target, on_step)
    graph = with_heads(graph, info)
    float_bytes = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value is not None)
    if info.precision is Precision.INT8:
        calibration = _write_photos(calibration, path.parent / PHOTOS_FOLDER, options)
    wanted = replace(options.precision, min_agreement=info.min_agreement)
    graph, reduction = reduce_precision(graph, wanted, calibration, target, on_step, boundary=info.boundary)
    with on_step("check and write model.onnx"):
        name_after_nodes(graph)
        check_graph(graph)
        write_model(graph, path)
    reference = _run_reference(network, info, options, calibration, on_step) if options.verify else None
    facts = options.output, info, options.onnx.shape, path.stat().st_size
    return ExportResult(*facts, simplification, rewriting, reduction, float_bytes), reference


def _exported(network: nn.Module, info: ModelInfo, options: ExportOptions) -> ir.Model:
    """Export a network; what PyTorch cannot trace is a ModuleError."""
    source = info.network.source if isinstance(info.network, ModuleSpec) else info.network.name
    try:
        traced = trace_network(network, options.onnx)
    except FcnDeployError:
        raise
    except Exception as error:
        raise ModuleError(
            f"{source} cannot be exported: {reason_of(error, Path(source.rpartition(':')[0]).name)}",
            remedy="Its operations must not depend on the values in the image (docs/networks.md).",
        ) from error
    graph = graph_of(traced, network)
    if info.network.num_classes == 1 and _is_probability(graph):
        raise ModuleError(
            f"the single class of {source} comes out of a Sigmoid: a probability, not a logit",
            remedy="Return what goes into the Sigmoid; --threshold is applied to its sigmoid.",
        )
    return graph


def _is_probability(graph: ir.Model) -> bool:
    node = graph.graph.outputs[0].producer()
    while node is not None and node.op_type in ("Resize", "Identity", "Cast", "Slice"):
        node = node.inputs[0].producer() if node.inputs[0] is not None else None
    return node is not None and node.op_type == "Sigmoid"


def _build(options: ExportOptions, on_step: OnStep) -> tuple[nn.Module, ModelInfo]:
    """Build the network with the checkpoint's weights or random ones; return it with its facts."""
    network, spec, provenance, names = (
        _build_fcn(options.variant, options, on_step)
        if options.variant is not None
        else _build_module(options, on_step)
    )
    precision, agreement = options.precision.precision, options.precision.agreement(provenance)
    interface = options.image_input, options.head
    info = ModelInfo(spec, provenance, *interface, precision, package_versions(), names, agreement)
    return network, options.labels.apply(replace(info, preprocessing=options.input_preprocessing))


def _build_module(options: ExportOptions, on_step: OnStep) -> Built:
    module, weights = options.module, options.weights
    if module is None:
        raise ValueError("checked when the options were made")
    loaded = f", load {weights.checkpoint}" if weights.checkpoint is not None else ""
    with on_step(f"run the code of {module.source}{loaded}"):
        return load_module(module, weights, options.onnx.shape, options.input_preprocessing.bounds)


def _build_fcn(variant: Variant, options: ExportOptions, on_step: OnStep) -> Built:
    weights, checkpoint = options.weights, None
    if weights.checkpoint is not None:
        with on_step(f"read checkpoint {weights.checkpoint}"):
            checkpoint = read_checkpoint(weights.checkpoint)
    spec = options.fcn(variant, checkpoint)
    check_fits(options.onnx.height, options.onnx.width, spec.variant, spec.geometry)
    with on_step(f"build {spec}"):
        if checkpoint is None:
            network, provenance = untrained_network(spec, weights)
            return network, spec, provenance, ()
        network, provenance = load_network(spec, checkpoint, weights)
        return network, spec, provenance, checkpoint.class_names


def _optimized(
    graph: ir.Model, options: ExportOptions, target: Target, on_step: OnStep
) -> tuple[ir.Model, Simplification | None, Rewriting | None]:
    """Simplify and rewrite the graph up to the requested level; return it with the report of each step."""
    if options.optimize is Optimize.NONE:
        return graph, None, None
    with on_step("simplify the graph and compare both versions"):
        graph, simplification = simplify(graph)
    if options.optimize is Optimize.SIMPLIFY:
        return graph, simplification, None
    graph, rewriting = rewrite(graph, target, exact_passes(target, options.precision.precision), on_step)
    return graph, simplification, rewriting


def _write_photos(calibration: Sequence[ParityInput], folder: Path, options: ExportOptions) -> tuple[ParityInput, ...]:
    """Write the first pictures of `calibration` into a new folder, in the size of the network's input, as JPEG files.

    Returns:
        `calibration`, with the written pictures replaced by the contents of their files.
    """
    folder.mkdir()
    kept = list(calibration)
    for index, given in enumerate(calibration[:BUNDLED_PHOTOS]):
        if given.pixels is not None:
            path = folder / f"{index}.jpg"
            Image.fromarray(given.pixels[0]).save(path, quality=_JPEG_QUALITY)
            kept[index] = photo_input(path, options.onnx.shape, options.input_preprocessing)
    return tuple(kept)


def _run_reference(
    network: nn.Module, info: ModelInfo, options: ExportOptions, calibration: Sequence[ParityInput], on_step: OnStep
) -> _Reference:
    """Run PyTorch on the inputs of the comparison: in int8, the photos that are bundled with the artifact."""
    photos = calibration[:BUNDLED_PHOTOS] if info.precision is Precision.INT8 else ()
    inputs = parity_inputs(info, options.onnx.shape, photos)
    runner = EagerRunner(network, options.onnx.shape)
    return _Reference(runner.name, inputs, run_all(runner, inputs, on_step))


def _prove(info: ModelInfo, reference: _Reference, path: Path, options: ExportOptions, on_step: OnStep) -> ParityReport:
    """Run the artifact in `path` on the reference's inputs, and compare it with the bounds of its precision.

    Raises:
        ParityError: a bound is exceeded; names the worst input and the first wrong layer.
    """
    candidate = OrtRunner(path)
    outputs = run_all(candidate, reference.inputs, on_step)
    with on_step("compare the outputs"):
        comparisons = compare_all(info, reference.inputs, reference.outputs, outputs)
    report = ParityReport(reference.name, candidate.name, tier_of(info), comparisons)
    if not report.passed:
        worst = reference.inputs[comparisons.index(report.worst)]
        source = options.module.source if options.module is not None else None
        rebuilt = rebuild(info, RebuildOptions(options.weights.checkpoint, source))
        found = compare_layers(path, rebuilt.network, worst, report.tier.max_error, on_step=on_step)
        report.require(found.verdict)
    return report


def _manifest(options: ExportOptions, result: ExportResult) -> dict[str, Any]:
    facts = {
        "opset": options.onnx.opset,
        "optimize": str(options.optimize),
        "target": str(result.rewriting.target) if result.rewriting else None,
        "command": list(options.command),
    }
    local = {"path", "file_bytes", "float_bytes"}
    return facts | {name: value for name, value in result.to_dict().items() if name not in local}
