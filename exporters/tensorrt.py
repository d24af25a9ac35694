"""From a bundle to a TensorRT engine: convert, parse, build, check what it computes in, write it with its sidecar."""

import hashlib
import json
import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporters.optimize import Target
from exporters.reduce import PrecisionOptions, calibration_inputs, reduced
from exporters.trt.builder import BuildPlan, Built, build
from exporters.trt.layers import engine_layers, require_precision
from exporters.trt.progress import OnPhases, untold
from exporters.trt.timing_cache import require_effect
from fcn_deploy.bundle import Bundle, open_bundle
from fcn_deploy.errors import BundleError, OutputError, ProviderError, UsageError
from fcn_deploy.hashing import file_sha256
from fcn_deploy.model_info import Precision
from fcn_deploy.onnx_file import write_model
from fcn_deploy.prediction import find_images
from fcn_deploy.runtime.cuda_driver import Device, current_device
from fcn_deploy.runtime.engine_file import PLAN_SUFFIX, Engine, LayerTypes, open_engine, sidecar_path
from fcn_deploy.runtime.tensorrt_flavour import Flavour, FlavourName, find_flavour
from fcn_deploy.runtime.trt import deserialized
from fcn_deploy.staging import check_writable, staged_file
from fcn_deploy.steps import OnStep, quietly
from fcn_deploy.version import __version__

MAX_WORKSPACE_MB = 1 << 20


@dataclass(frozen=True)
class EngineOptions:
    """What to build an engine from, for what, and where to.

    Attributes:
        source: a bundle's directory, or an ONNX file of this toolkit.
        output: the plan; None puts it beside the source, as `<source>.plan`.
        precision: the arithmetic; None keeps the source's own.
        calibration: images that a float32 source is observed on before it is reduced; empty takes the photo that
            comes along.
        flavour: which TensorRT; None takes the one that is installed, TensorRT before TensorRT-RTX.
        capabilities: compute capabilities to build for ahead of time, e.g. `8.9`: TensorRT-RTX only.
        workspace_mb: limit on scratch memory in MiB; None leaves it to TensorRT.
        timing_cache: file that keeps what the builder measured: TensorRT only.
        force: replace an existing engine that is another.

    Raises:
        UsageError: an option out of its bounds.
    """

    source: Path
    output: Path | None = None
    precision: Precision | None = None
    calibration: tuple[Path, ...] = ()
    flavour: FlavourName | None = None
    capabilities: tuple[str, ...] = ()
    workspace_mb: int | None = None
    timing_cache: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.workspace_mb is not None and not 1 <= self.workspace_mb <= MAX_WORKSPACE_MB:
            raise UsageError(
                f"workspace {self.workspace_mb} MiB is not between 1 and {MAX_WORKSPACE_MB}",
                remedy="Pass more, or leave --workspace out: TensorRT then takes what it needs.",
            )
        if self.plan_path.suffix != PLAN_SUFFIX:
            raise UsageError(f"{self.plan_path} does not end in {PLAN_SUFFIX}", remedy=f"Name it *{PLAN_SUFFIX}.")

    @property
    def plan_path(self) -> Path:
        """Where the plan is written."""
        if self.output is not None:
            return self.output
        name = self.source.stem if self.source.suffix == ".onnx" else self.source.name
        return self.source.with_name(name + PLAN_SUFFIX)


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


@dataclass(frozen=True)
class _Job:
    """Everything that decides what is built."""

    bundle: Bundle
    precision: Precision
    source_sha256: str
    flavour: Flavour
    device: Device | None
    key: str


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
    device = _device(flavour, options)
    with on_step(f"check {options.source}"):
        job = _job(options, flavour, device)
        present = _present(options, job.key)
    if present is not None:
        return EngineBuild(present, up_to_date=True)
    with tempfile.TemporaryDirectory() as folder:
        path = _graph(job, options, Path(folder), on_step)
        plan = BuildPlan(job.precision, options.capabilities, options.workspace_mb, options.timing_cache)
        with on_step(f"build the engine with {flavour}, {job.precision}"):
            built = build(flavour, path, plan, on_phases)
    return EngineBuild(_written(options, job, built, on_step), up_to_date=False)


def _device(flavour: Flavour, options: EngineOptions) -> Device | None:
    """The GPU to build for; None when compute capabilities are named instead."""
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


def _job(options: EngineOptions, flavour: Flavour, device: Device | None) -> _Job:
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
    return _Job(bundle, precision, sha256, flavour, device, key)


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
    if wanted is not own:
        PrecisionOptions(wanted).check_opset(bundle.model.opset_imports.get("", 0))
    return wanted


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


def _graph(job: _Job, options: EngineOptions, folder: Path, on_step: OnStep) -> Path:
    """The ONNX file to parse: the source's own, or one in the precision asked for, written to `folder`."""
    if job.precision is job.bundle.info.precision:
        return job.bundle.model_path
    reducing = PrecisionOptions(job.precision, options.calibration)
    inputs = calibration_inputs(reducing, job.bundle.input_shape)
    model, _ = reduced(job.bundle.model, reducing, inputs, Target.TENSORRT, on_step)
    path = folder / "model.onnx"
    write_model(model, path)
    return path


def _written(options: EngineOptions, job: _Job, built: Built, on_step: OnStep) -> Engine:
    path = options.plan_path
    with staged_file(path) as staging, staged_file(sidecar_path(path)) as sidecar:
        with on_step("write the plan and its sidecar"):
            staging.write_bytes(built.plan)
        layers = _layers(job, built, staging, on_step)
        engine = _described(options, job, built, layers, staging)
        sidecar.write_text(engine.sidecar(), encoding="utf-8")
    return engine


def _layers(job: _Job, built: Built, plan: Path, on_step: OnStep) -> LayerTypes:
    """Types of the engine's layers on a GPU that it was built for, else those of the network it was built from."""
    if job.device is None:
        return built.layers
    with on_step("read the engine's layers"):
        layers = engine_layers(job.flavour, deserialized(job.flavour, plan))
    require_precision(layers, job.precision)
    return layers


def _described(options: EngineOptions, job: _Job, built: Built, layers: LayerTypes, plan: Path) -> Engine:
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
