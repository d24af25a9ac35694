"""From a bundle to a TensorRT engine: convert, parse, build, check what it computes in, write it with its sidecar."""

import tempfile
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporters.optimize import Target
from exporters.reduce import PrecisionOptions, calibration_inputs, reduced
from exporters.trt.builder import BuildPlan, Built, build
from exporters.trt.job import Job, device_for, job_of
from exporters.trt.layers import engine_layers, require_precision
from exporters.trt.options import EngineOptions
from exporters.trt.progress import OnPhases, untold
from fcn_deploy.errors import BundleError, OutputError, ParityError
from fcn_deploy.hashing import file_sha256
from fcn_deploy.onnx_file import write_model
from fcn_deploy.runtime.engine_file import Engine, LayerTypes, open_engine, sidecar_path
from fcn_deploy.runtime.tensorrt_flavour import find_flavour
from fcn_deploy.runtime.trt import deserialized
from fcn_deploy.staging import check_writable, staged_file
from fcn_deploy.steps import OnStep, quietly


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
    model, _ = reduced(job.bundle.model, reducing, inputs, Target.TENSORRT, on_step)
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
