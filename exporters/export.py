"""From a checkpoint to a verified bundle: build, export, simplify, rewrite, reduce, compare, write."""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import onnx_ir as ir
from PIL import Image

from exporters.onnx import OnnxOptions, export_graph, name_after_nodes
from exporters.precision.int8 import GO_ALONG
from exporters.precision.reduce import PrecisionOptions, Reduction, calibration_inputs, reduced
from exporters.rewrite import Rewriting, exact_passes, rewrite, target_of_this_machine, with_heads
from exporters.simplify import Simplification, simplify
from fcn_deploy.artifact.bundle import MANIFEST_FILE, MODEL_FILE, PHOTOS_FOLDER, write_manifest
from fcn_deploy.choices import Geometry, Head, ImageInput, Optimize, Precision, Target, Variant
from fcn_deploy.errors import ParityError
from fcn_deploy.geometry import check_fits
from fcn_deploy.graph import typed_skeleton
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.installation import package_versions
from fcn_deploy.model_info import ModelInfo, NetworkSpec, Provenance
from fcn_deploy.models.checkpoints import Checkpoint, read_checkpoint
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.weights import WeightsOptions, load_network, rebuild, untrained_network
from fcn_deploy.onnx_file import write_model
from fcn_deploy.parity.bisect import compare_layers
from fcn_deploy.parity.inputs import ParityInput, Shape, noise_input, photo_input, pixel_noise_input
from fcn_deploy.parity.report import ParityReport
from fcn_deploy.parity.tolerance import tier_of
from fcn_deploy.parity.verify import Outputs, compare_all, run_all
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.eager import EagerRunner
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.storage import staged_directory


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and where to.

    Attributes:
        variant: which FCN.
        output: the bundle's directory.
        geometry: how pools round; None takes the checkpoint family's own, floor without a checkpoint.
        num_classes: K; None takes the checkpoint's, 21 without one.
        channel_divisor: divides every width; more than 1 makes a quick stand-in for the real network. None takes the
            checkpoint's, 1 without one.
        weights: the checkpoint, or the seed of random weights.
        onnx: shapes and opset.
        optimize: how much the graph is rewritten.
        target: what the rewrites are chosen for; None takes what the machine has.
        head: what the graph gives.
        image_input: what the graph takes.
        precision: what the graph computes in.
        verify: compare with PyTorch before the bundle is written.
        force: replace an existing bundle.
        command: what was typed, for the record.

    Raises:
        UsageError: the number of classes or the divisor is out of its bounds, or the opset lacks the arithmetic.
    """

    variant: Variant
    output: Path
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
    verify: bool = True
    force: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.network(None)
        self.precision.check_opset(self.onnx.opset)

    def network(self, checkpoint: Checkpoint | None) -> NetworkSpec:
        """The network to build: what is asked for, then what the checkpoint has, then the defaults."""
        found = NetworkSpec(self.variant)
        if checkpoint is not None:
            found = replace(
                found,
                geometry=checkpoint.family.geometry,
                num_classes=checkpoint.num_classes or found.num_classes,
                channel_divisor=checkpoint.channel_divisor,
            )
        names = "geometry", "num_classes", "channel_divisor"
        return replace(found, **{name: value for name in names if (value := getattr(self, name)) is not None})


_JPEG_QUALITY = 95


def write_photos(calibration: Sequence[ParityInput], folder: Path, shape: Shape) -> tuple[ParityInput, ...]:
    """Write the first pictures of `calibration` into a new folder, in the size the network takes, as JPEG files.

    Returns:
        `calibration` with what was written in the place of what it was written from.
    """
    folder.mkdir()
    kept = list(calibration)
    for index, given in enumerate(calibration[:GO_ALONG]):
        if given.pixels is not None:
            path = folder / f"{index}.jpg"
            Image.fromarray(given.pixels[0]).save(path, quality=_JPEG_QUALITY)
            kept[index] = photo_input(path, shape)
    return tuple(kept)


@dataclass(frozen=True)
class Reference:
    """What PyTorch computed; the network itself may be gone from memory.

    Attributes:
        name: what it ran on.
        inputs: what it was run on.
        outputs: one per input.
    """

    name: str
    inputs: tuple[ParityInput, ...]
    outputs: list[Outputs]


def check_graph(graph: ir.Model) -> None:
    """ONNX's own checker with full shape inference, on the graph as it is written.

    Raises:
        ParityError: the graph is not valid.
    """
    try:
        onnx.checker.check_model(typed_skeleton(graph), full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ParityError(f"ONNX's checker refuses the graph: {error}", remedy="Try --optimize none.") from error


def compared_inputs(info: ModelInfo, shape: Shape, calibration: Sequence[ParityInput]) -> tuple[ParityInput, ...]:
    """What a fresh artifact is compared on: a photo and noise, or those of its photos that go along with it in int8."""
    if info.precision is Precision.INT8:
        return tuple(calibration[:GO_ALONG])
    noise = pixel_noise_input if info.image_input is ImageInput.UINT8 else noise_input
    return photo_input(SAMPLE_PHOTO, shape), noise(0, shape)


def run_reference(network: FCN, inputs: tuple[ParityInput, ...], shape: Shape, on_step: OnStep) -> Reference:
    """Run PyTorch on `inputs`."""
    runner = EagerRunner(network, shape)
    return Reference(runner.name, inputs, run_all(runner, inputs, on_step))


def require_parity(
    info: ModelInfo, reference: Reference, path: Path, network: Callable[[], FCN], on_step: OnStep
) -> ParityReport:
    """Run the artifact in `path` on the reference's inputs, and judge it by the tier of its arithmetic.

    Args:
        info: the artifact's facts.
        reference: what it is compared with.
        path: the ONNX file.
        network: makes the network anew, to find the layer that went wrong.
        on_step: told what is being done.

    Raises:
        ParityError: it does not compute the network; names the worst input and the first layer that went wrong.
    """
    candidate = OrtRunner(path)
    outputs = run_all(candidate, reference.inputs, on_step)
    with on_step("compare the two"):
        comparisons = compare_all(reference.inputs, reference.outputs, outputs)
    report = ParityReport(reference.name, candidate.name, tier_of(info), comparisons)
    if not report.passed:
        worst = reference.inputs[comparisons.index(report.worst)]
        found = compare_layers(path, network(), worst, report.tier.max_error, on_step=on_step)
        report.require(found.verdict)
    return report


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
