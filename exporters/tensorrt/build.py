"""From a bundle to a TensorRT engine: convert, parse, build, check what it computes in, write it with its sidecar."""

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporters.onnx import BF16_OPSET
from exporters.precision.options import PrecisionOptions
from exporters.precision.reduce import calibration_inputs, reduce_precision
from exporters.tensorrt.builder import BuildPlan, Built, OnPhases, build, require_effect, untold
from exporters.tensorrt.layers import engine_layers, require_precision
from exporters.tensorrt.options import EngineOptions
from fcn_deploy.artifact.bundle import Bundle, open_bundle
from fcn_deploy.artifact.engine import Device, Engine, LayerTypes, open_engine, sidecar_path
from fcn_deploy.choices import Precision, Target
from fcn_deploy.errors import BundleError, OutputError, ParityError, ProviderError, UsageError
from fcn_deploy.images import find_images
from fcn_deploy.installation import __version__
from fcn_deploy.onnx_file import write_model
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.nvidia import current_device
from fcn_deploy.runtime.tensorrt import deserialized
from fcn_deploy.runtime.tensorrt_flavour import Flavour, find_flavour
from fcn_deploy.storage import check_writable, file_sha256, staged_file


@dataclass(frozen=True)
class Job:
    """Everything that decides what is built.

    Attributes:
        bundle: the source.
        precision: what the engine is to compute in.
        source_sha256: of the source's ONNX file.
        flavour: the TensorRT that builds.
        device: the GPU to build for; None when compute capabilities are named instead.
        key: hash of all of it.
    """

    bundle: Bundle
    precision: Precision
    source_sha256: str
    flavour: Flavour
    device: Device | None
    key: str


def device_for(flavour: Flavour, options: EngineOptions) -> Device | None:
    """The GPU to build for; None when compute capabilities are named instead.

    Raises:
        UsageError: options that this TensorRT does not have.
        ProviderError: there is no GPU, and none is named.
    """
    if options.capabilities and not flavour.builds_without_gpu:
        raise UsageError(
            f"compute capability {', '.join(options.capabilities)}: {flavour} builds for the GPU it runs on only",
            remedy="Leave --compute-capability out, or pass --flavour tensorrt-rtx.",
        )
    if options.timing_cache is not None:
        require_effect(flavour)
    for text in options.capabilities:
        flavour.capability(text)
    if options.capabilities:
        return None
    device = current_device()
    if device is None:
        others = (
            f"--compute-capability {','.join(flavour.capabilities)}, or some of these" if flavour.capabilities else ""
        )
        raise ProviderError(
            f"{flavour} builds for the GPU at hand, and there is none",
            remedy=f"Pass {others}." if others else "Run this on the machine that is to run the engine.",
        )
    return device


def job_of(options: EngineOptions, flavour: Flavour, device: Device | None) -> Job:
    """Open the source, settle the precision, and hash all that decides what is built.

    Raises:
        BundleError: the source is damaged, or no model of this toolkit.
        UsageError: the source cannot have the precision asked for.
    """
    bundle = open_bundle(options.source)
    precision = _precision(options, bundle)
    sha256 = file_sha256(bundle.model_path)
    images = find_images([str(path) for path in options.calibration])
    facts = {
        "fcn_deploy": __version__,
        "model": sha256,
        "precision": precision,
        "calibration": [file_sha256(path) for path in images],
        "flavour": [flavour.name, flavour.version],
        "capabilities": options.capabilities,
        "device": [device.name, device.capability, device.driver] if device else None,
        "workspace_mb": options.workspace_mb,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Job(bundle, precision, sha256, flavour, device, key)


def require_signed(bundle: Bundle, source: str) -> None:
    """Check that TensorRT can read a bundle's 8-bit maps, if it has any.

    Args:
        bundle: the bundle.
        source: what the user calls it.

    Raises:
        UsageError: they are unsigned.
    """
    unsigned = next((node for node in bundle.model.graph if _rounds_unsigned(node)), None)
    if unsigned is not None:
        raise UsageError(
            f"{source} has 8-bit maps in uint8, at {unsigned.name} first: for CPUs; TensorRT takes int8",
            remedy="Export it again with --target tensorrt.",
        )


def _rounds_unsigned(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear" and node.outputs[0].dtype is ir.DataType.UINT8


def _precision(options: EngineOptions, bundle: Bundle) -> Precision:
    own = bundle.info.precision
    wanted = options.precision or own
    if wanted is not own and own is not Precision.FP32:
        raise UsageError(
            f"{options.source} is {own} already and cannot become {wanted}",
            remedy=f"Export the checkpoint again with --precision {wanted}, or in fp32.",
        )
    if wanted is Precision.INT8 and own is not wanted:
        raise UsageError("an engine is not quantized while it is built", remedy="Export with --precision int8 first.")
    if wanted is own and options.calibration:
        raise UsageError(
            f"calibration images are for reducing a float32 graph, and {options.source} stays {own}",
            remedy="Leave --calibration out, or ask for another --precision.",
        )
    require_signed(bundle, str(options.source))
    opset = bundle.model.opset_imports.get("", 0)
    if wanted is Precision.BF16 and opset < BF16_OPSET:
        raise UsageError(
            f"{options.source} has opset {opset}, which has no bfloat16 convolutions; {BF16_OPSET} and later do",
            remedy=f"Export it again with --opset {BF16_OPSET}, or pass --precision fp16.",
        )
    return wanted


@dataclass(frozen=True)
class EngineBuild:
    """The outcome of a build.

    Attributes:
        engine: what lies there now.
        up_to_date: it lay there already, made of the same, and nothing was built.
    """

    engine: Engine
    up_to_date: bool

    def to_dict(self) -> dict[str, Any]:
        """Every fact, for JSON."""
        return {"up_to_date": self.up_to_date, **self.engine.to_dict()}


def build_engine(options: EngineOptions, on_step: OnStep = quietly, on_phases: OnPhases = untold) -> EngineBuild:
    """Build a TensorRT engine and its sidecar; do nothing when the same engine is there already.

    Args:
        options: what to build, and where to.
        on_step: told what is being done.
        on_phases: told how far TensorRT is, from threads of TensorRT's.

    Raises:
        UsageError: options that do not go together, or nodes that TensorRT refuses.
        BundleError: the source is damaged, or no model of this toolkit.
        InputFileError: the timing cache cannot be used.
        OutputError: another engine is there already, or it cannot be written.
        ProviderError: TensorRT or a GPU is missing, or the build failed.
        ParityError: the engine does not compute in the precision asked for.
    """
    flavour = find_flavour(options.flavour)
    device = device_for(flavour, options)
    with on_step(f"check {options.source}"):
        job = job_of(options, flavour, device)
        present = _present(options, job.key)
    if present is not None:
        return EngineBuild(present, up_to_date=True)
    with tempfile.TemporaryDirectory() as folder:
        path = _graph(job, options, Path(folder), on_step)
        plan = BuildPlan(job.precision, options.capabilities, options.workspace_mb, options.timing_cache)
        with on_step(f"build the engine with {flavour}, {job.precision}"):
            built = build(flavour, path, plan, on_phases)
    return EngineBuild(_written(options, job, built, on_step), up_to_date=False)


def _present(options: EngineOptions, key: str) -> Engine | None:
    """The engine that is there already, if it is the one that would be built.

    Raises:
        OutputError: something else is there and may not be replaced, or nothing can be written there.
    """
    path = options.plan_path
    check_writable(path)
    if not path.exists():
        return None
    try:
        engine = open_engine(path)
    except BundleError:
        engine = None
    if engine is not None and engine.key == key:
        return engine
    if not options.force:
        what = (
            "cannot be recognised" if engine is None else f"is another: {engine.info.precision} for {engine.built_for}"
        )
        raise OutputError(
            f"{path} exists already and {what}", remedy="Pass --force to replace it, or another --output."
        )
    return None


def _graph(job: Job, options: EngineOptions, folder: Path, on_step: OnStep) -> Path:
    """The ONNX file to parse: the source's own, or one in the precision asked for, written to `folder`."""
    if job.precision is job.bundle.info.precision:
        return job.bundle.model_path
    reducing = PrecisionOptions(job.precision, options.calibration)
    inputs = calibration_inputs(reducing, job.bundle.input_shape)
    model, _ = reduce_precision(job.bundle.model, reducing, inputs, Target.TENSORRT, on_step)
    path = folder / "model.onnx"
    write_model(model, path)
    return path


def _written(options: EngineOptions, job: Job, built: Built, on_step: OnStep) -> Engine:
    path = options.plan_path
    with staged_file(path) as staging, staged_file(sidecar_path(path)) as sidecar:
        with on_step("write the plan and its sidecar"):
            staging.write_bytes(built.plan)
        layers = _layers(job, built, staging, on_step)
        engine = _described(options, job, built, layers, staging)
        sidecar.write_text(engine.sidecar(), encoding="utf-8")
    return engine


def _layers(job: Job, built: Built, plan: Path, on_step: OnStep) -> LayerTypes:
    """Types of the engine's layers on a GPU that it was built for, else those of the network it was built from."""
    if job.device is None:
        return built.layers
    with on_step("read the engine's layers"):
        layers = engine_layers(job.flavour, deserialized(job.flavour, plan))
    if layers is None and job.flavour.times_kernels:
        raise ParityError(
            f"{job.flavour}'s inspector names no layer's type, so nobody knows what the engine computes in",
            remedy="Report this: it was asked for detailed layers.",
        )
    # RTX compiles where the engine runs, and may have no layers to tell of before.
    layers = layers or built.layers
    require_precision(layers, job.precision)
    return layers


def _described(options: EngineOptions, job: Job, built: Built, layers: LayerTypes, plan: Path) -> Engine:
    info = replace(job.bundle.info, precision=job.precision)
    return Engine(
        path=options.plan_path,
        metadata=info.to_metadata(),
        input_shape=job.bundle.input_shape,
        inputs=built.inputs,
        outputs=built.outputs,
        source_sha256=job.source_sha256,
        plan_sha256=file_sha256(plan),
        plan_bytes=plan.stat().st_size,
        flavour=job.flavour.name,
        version=job.flavour.version,
        capabilities=options.capabilities,
        device=job.device,
        key=job.key,
        workspace_mb=options.workspace_mb,
        layers=layers,
        build_seconds=built.seconds,
    )
