"""Build a TensorRT engine from a bundle: plan, convert the graph, build, check the layers, write."""

import hashlib
import json
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.onnx import BF16_OPSET
from exporters.precision.options import PrecisionOptions
from exporters.precision.reduce import calibration_inputs, reduce_precision
from exporters.tensorrt.layers import engine_layers, listed_layers, network_layers, require_precision
from exporters.tensorrt.options import EngineOptions
from fcn_deploy.artifact.bundle import Bundle, open_bundle
from fcn_deploy.artifact.engine import Device, Engine, LayerTypes, open_engine, sidecar_path
from fcn_deploy.choices import Precision, Target
from fcn_deploy.errors import BundleError, InputFileError, OutputError, ParityError, ProviderError, UsageError
from fcn_deploy.images import find_images
from fcn_deploy.installation import __version__
from fcn_deploy.model_info import TRANSFORM_KEY, TensorSpec
from fcn_deploy.onnx_file import write_model
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.nvidia import current_device
from fcn_deploy.runtime.tensorrt import deserialized
from fcn_deploy.runtime.tensorrt_flavour import Flavour, Message, find_flavour, worst
from fcn_deploy.storage import check_writable, file_sha256, staged_file

_MEBIBYTE = 1 << 20
_WARNING = 2
_LISTED_NODES = 10


@dataclass(frozen=True)
class Phase:
    """A phase of a build."""

    name: str  # as TensorRT calls it
    steps: int  # how many it has
    done: int = 0  # how many are done

    def __str__(self) -> str:
        return f"{self.name} {self.done}/{self.steps}"


# Called with the current phases, outermost first, from TensorRT's own threads.
OnPhases = Callable[[tuple[Phase, ...]], None]


@dataclass(frozen=True)
class EngineBuild:
    """The outcome of a build.

    Attributes:
        engine: the engine at the output path.
        up_to_date: the same engine existed, and nothing was built.
    """

    engine: Engine
    up_to_date: bool

    def to_dict(self) -> dict[str, Any]:
        """Every fact, for JSON."""
        return {"up_to_date": self.up_to_date, **self.engine.to_dict()}


def build_engine(
    options: EngineOptions, on_step: OnStep = quietly, on_phases: OnPhases = lambda _phases: None
) -> EngineBuild:
    """Build a TensorRT engine and its sidecar; do nothing when the same engine exists.

    Args:
        options: what to build, and where to.
        on_step: called with each step.
        on_phases: called with the progress of TensorRT's builder, from its threads.

    Raises:
        UsageError: options that exclude each other, or nodes that TensorRT refuses.
        BundleError: the source is damaged, or not a model of this toolkit.
        InputFileError: the timing cache cannot be used.
        OutputError: another engine exists, or it cannot be written.
        ProviderError: TensorRT or a GPU is missing, or the build failed.
        ParityError: the engine does not compute in the requested precision.
    """
    flavour = find_flavour(options.flavour)
    device = _device_for(flavour, options)
    with on_step(f"check {options.source}"):
        job = _job_of(options, flavour, device)
        present = _present(options, job.key)
    if present is not None:
        return EngineBuild(present, up_to_date=True)
    with tempfile.TemporaryDirectory() as folder:
        path = _graph(job, Path(folder), on_step)
        with on_step(f"build the engine with {flavour}, {job.precision}"):
            plan, engine = _build(job, path, on_phases)
    return EngineBuild(_write(job, plan, engine, on_step), up_to_date=False)


@dataclass(frozen=True)
class EngineJob:
    """All inputs of a build."""

    options: EngineOptions  # the options
    bundle: Bundle  # the source
    precision: Precision  # what the engine is to compute in
    source_sha256: str  # of the source's ONNX file
    flavour: Flavour  # the TensorRT that builds
    device: Device | None  # the GPU to build for; None when compute capabilities are named instead
    key: str  # hash of all of it


def _device_for(flavour: Flavour, options: EngineOptions) -> Device | None:
    """Return the GPU to build for; None when compute capabilities are named instead."""
    if options.capabilities and not flavour.builds_without_gpu:
        raise UsageError(
            f"compute capability {', '.join(options.capabilities)}: {flavour} builds only for this machine's GPU",
            remedy="Omit --compute-capability, or pass --flavour tensorrt-rtx.",
        )
    if options.timing_cache is not None and not flavour.times_kernels:
        raise UsageError(
            f"{flavour} has no timing cache: it compiles kernels when the engine runs and times none during the build",
            remedy="Omit --timing-cache.",
        )
    for text in options.capabilities:
        flavour.capability(text)
    if options.capabilities:
        return None
    device = current_device()
    if device is None:
        named = f"Pass --compute-capability with one or more of {','.join(flavour.capabilities)}."
        raise ProviderError(
            f"{flavour} builds for the GPU of this machine, and there is none",
            remedy=named if flavour.capabilities else "Run this on the machine that is to run the engine.",
        )
    return device


def _job_of(options: EngineOptions, flavour: Flavour, device: Device | None) -> EngineJob:
    """Open the source, choose the precision, and hash all inputs of the build."""
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
    return EngineJob(options, bundle, precision, sha256, flavour, device, key)


def _precision(options: EngineOptions, bundle: Bundle) -> Precision:
    own = bundle.info.precision
    wanted = options.precision or own
    if wanted is not own and own is not Precision.FP32:
        raise UsageError(
            f"{options.source} is {own} and cannot be converted to {wanted}",
            remedy=f"Export the checkpoint again with --precision {wanted}, or in fp32.",
        )
    if wanted is not own and any(TRANSFORM_KEY in node.metadata_props for node in bundle.model.graph):
        raise UsageError(
            f"{options.source} is for CPUs: the transforms of its fast convolutions lose too much in {wanted}",
            remedy="Export it again with --target tensorrt.",
        )
    if wanted is Precision.INT8 and own is not wanted:
        raise UsageError("building an engine does not quantize it", remedy="Export with --precision int8 first.")
    if wanted is own and options.calibration:
        raise UsageError(
            f"calibration images are used only to convert a float32 graph; {options.source} stays {own}",
            remedy="Omit --calibration, or pass another --precision.",
        )
    require_signed(bundle, str(options.source))
    opset = bundle.model.opset_imports.get("", 0)
    if wanted is Precision.BF16 and opset < BF16_OPSET:
        raise UsageError(
            f"{options.source} has opset {opset}, which has no bfloat16 convolutions; {BF16_OPSET} and later do",
            remedy=f"Export it again with --opset {BF16_OPSET}, or pass --precision fp16.",
        )
    return wanted


def require_signed(bundle: Bundle, source: str) -> None:
    """Refuse unsigned 8-bit maps, which TensorRT cannot read, in a bundle that the user calls `source`."""
    for node in bundle.model.graph:
        if node.op_type == "QuantizeLinear" and node.outputs[0].dtype is ir.DataType.UINT8:
            raise UsageError(
                f"{source} has uint8 maps for CPUs, {node.name} first; TensorRT needs int8",
                remedy="Export it again with --target tensorrt.",
            )


def _present(options: EngineOptions, key: str) -> Engine | None:
    """Return the engine that is there already if it is the one that would be built; refuse to replace another."""
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
    if options.force:
        return None
    found = "cannot be recognised" if engine is None else f"differs: {engine.info.precision} for {engine.built_for}"
    raise OutputError(f"{path} exists already and {found}", remedy="Pass --force to replace it, or another --output.")


def _graph(job: EngineJob, folder: Path, on_step: OnStep) -> Path:
    """Return the ONNX file to parse: the source's own, or one in the requested precision, written to `folder`."""
    if job.precision is job.bundle.info.precision:
        return job.bundle.model_path
    reducing = PrecisionOptions(job.precision, job.options.calibration)
    inputs = calibration_inputs(reducing, job.bundle.input_shape, job.bundle.info.preprocessing)
    model, _ = reduce_precision(job.bundle.model, reducing, inputs, Target.TENSORRT, on_step)
    path = folder / "model.onnx"
    write_model(model, path)
    return path


def _build(job: EngineJob, path: Path, on_phases: OnPhases) -> tuple[Any, Engine]:
    """Parse an ONNX file and build its engine; returns the plan in TensorRT's own buffer, and its facts.

    The types of layers are those that the builder lists, or else the network's.
    """
    flavour = job.flavour
    builder = flavour.trt.Builder(flavour.log.logger)
    network = _parsed(flavour, builder, path)
    typed = network_layers(network)
    require_precision(typed, job.precision)
    config = builder.create_builder_config()
    _configure(flavour, config, job.options)
    cache_path = job.options.timing_cache
    cache = load_timing_cache(flavour, config, cache_path) if cache_path is not None else None
    start = time.perf_counter()
    plan, messages = _run(flavour, builder, network, config, on_phases)
    seconds = time.perf_counter() - start
    layers = listed_layers(messages) or typed
    require_precision(layers, job.precision)
    if cache is not None and cache_path is not None:
        with staged_file(cache_path) as staging:
            staging.write_bytes(bytes(cache.serialize()))
    return plan, _described(job, network, plan, layers, seconds)


def _parsed(flavour: Flavour, builder: Any, path: Path) -> Any:
    """Return the strongly typed network of an ONNX file: each layer computes in the types that the file states.

    Raises:
        UsageError: TensorRT's parser refuses nodes of it; names them.
    """
    network = builder.create_network(flavour.network_flags())
    parser = flavour.trt.OnnxParser(network, flavour.log.logger)
    done = parser.parse_from_file(str(path))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if done and not errors:
        return network
    lines = [f"  node {e.node()} {e.node_name() or 'without a name'} ({e.node_operator()}): {e.desc()}" for e in errors]
    rest = [f"  and {len(lines) - _LISTED_NODES} more"] if len(lines) > _LISTED_NODES else []
    raise UsageError(
        "\n".join([f"{flavour} refuses {len(errors)} nodes of the graph:", *lines[:_LISTED_NODES], *rest]),
        remedy="Export with another --opset or --optimize simplify. Custom nodes need a plugin, which this command "
        "does not load.",
    )


def _spec(flavour: Flavour, tensor: Any) -> TensorSpec:
    return TensorSpec(tensor.name, tuple(tensor.shape), np.dtype(flavour.trt.nptype(tensor.dtype)).name)


def _configure(flavour: Flavour, config: Any, options: EngineOptions) -> None:
    trt = flavour.trt
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Set by default: float32 products would be rounded to 10 bits of fraction.
    config.clear_flag(trt.BuilderFlag.TF32)
    if options.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, options.workspace_mb * _MEBIBYTE)
    targets = flavour.build_targets(options.capabilities)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(target, index)


def load_timing_cache(flavour: Flavour, config: Any, path: Path) -> Any:
    """Attach the cache at `path`, or a new one if there is none, to a builder's configuration; return the cache.

    TensorRT itself only logs an unreadable cache and continues with an empty one.

    Raises:
        InputFileError: the file is no timing cache of this TensorRT and GPU.
    """
    data = path.read_bytes() if path.is_file() else b""
    with flavour.log.listening() as messages:
        cache = config.create_timing_cache(data)
        attached = cache is not None and config.set_timing_cache(cache, False)
    problem = worst(messages, _WARNING) if data else ""
    if problem or not attached or (path.is_file() and not data):
        raise InputFileError(
            f"timing cache {path} ({len(data)} bytes) cannot be used: {problem or f'{flavour} refuses it'}",
            remedy="It is damaged, or from another TensorRT or GPU: remove it, or pass a new file.",
        )
    return cache


def _run(flavour: Flavour, builder: Any, network: Any, config: Any, on_phases: OnPhases) -> tuple[Any, list[Message]]:
    """Build on another thread, so that this one can be interrupted; the builder then ends at its next step."""
    # Referenced until the build has ended, because TensorRT does not keep it alive.
    monitor_type = type("Monitor", (BuildMonitor, flavour.trt.IProgressMonitor), {})
    monitor = config.progress_monitor = monitor_type(on_phases)
    with flavour.log.listening() as messages, ThreadPoolExecutor(1) as pool:
        future = pool.submit(builder.build_serialized_network, network, config)
        try:
            plan = future.result()
        except BaseException:
            monitor.stopped = True
            raise
    if monitor.failure is not None:
        raise monitor.failure
    if plan is None:
        raise ProviderError(
            f"{flavour} could not build the engine: {worst(messages) or 'no reason given'}",
            remedy="For errors about memory or missing implementations, pass a larger --workspace; for errors about "
            "types, pass --precision fp32, or newer GPUs to --compute-capability.",
        )
    return plan, messages


class BuildMonitor:
    """Keeps the phases under way: the methods of TensorRT's IProgressMonitor, with which it is combined.

    Attributes:
        stopped: whether the build has to end at its next step.
        failure: the first exception of `on_phases`.
    """

    def __init__(self, on_phases: OnPhases) -> None:
        super().__init__()  # of IProgressMonitor
        self._on_phases, self._lock = on_phases, threading.Lock()
        self._phases: dict[str, Phase] = {}
        self.stopped = False
        self.failure: Exception | None = None

    def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
        """Add a phase."""
        self._update({**self._phases, phase_name: Phase(phase_name, num_steps)})

    def step_complete(self, phase_name: str, step: int) -> bool:
        """Count a step, numbered from 0; returns whether the build is to go on."""
        if phase_name in self._phases:
            self._update({**self._phases, phase_name: replace(self._phases[phase_name], done=step + 1)})
        return not self.stopped

    def phase_finish(self, phase_name: str) -> None:
        """Remove a phase."""
        self._update({name: phase for name, phase in self._phases.items() if name != phase_name})

    def _update(self, phases: dict[str, Phase]) -> None:
        with self._lock:
            self._phases = phases
            try:
                self._on_phases(tuple(phases.values()))
            except Exception as error:  # must not pass through TensorRT, which is not Python
                self.failure = self.failure or error
                self.stopped = True


def _described(job: EngineJob, network: Any, plan: Any, layers: LayerTypes, seconds: float) -> Engine:
    return Engine(
        path=job.options.plan_path,
        metadata=replace(job.bundle.info, precision=job.precision).to_metadata(),
        input_shape=job.bundle.input_shape,
        inputs=tuple(_spec(job.flavour, network.get_input(index)) for index in range(network.num_inputs)),
        outputs=tuple(_spec(job.flavour, network.get_output(index)) for index in range(network.num_outputs)),
        source_sha256=job.source_sha256,
        plan_sha256=hashlib.sha256(plan).hexdigest(),
        plan_bytes=memoryview(plan).nbytes,
        flavour=job.flavour.name,
        version=job.flavour.version,
        capabilities=job.options.capabilities,
        device=job.device,
        key=job.key,
        workspace_mb=job.options.workspace_mb,
        layers=layers,
        build_seconds=seconds,
    )


def _write(job: EngineJob, plan: Any, engine: Engine, on_step: OnStep) -> Engine:
    """Write a plan and its sidecar; returns the engine with the types of its layers on the GPU it was built for."""
    with staged_file(engine.path) as staging, staged_file(sidecar_path(engine.path)) as sidecar:
        with on_step("write the plan and its sidecar"):
            staging.write_bytes(plan)
        engine = replace(engine, layers=_layers(job, engine.layers, staging, on_step))
        sidecar.write_text(engine.sidecar(), encoding="utf-8")
    return engine


def _layers(job: EngineJob, known: LayerTypes, plan: Path, on_step: OnStep) -> LayerTypes:
    """Return the types of the engine's layers on a GPU that it was built for, else those known from its build."""
    if job.device is None:
        return known
    with on_step("read the engine's layers"):
        layers = engine_layers(job.flavour, deserialized(job.flavour, plan))
    if layers is None and job.flavour.times_kernels:
        raise ParityError(
            f"{job.flavour}'s inspector reports no layer types, so the engine's precision is unknown",
            remedy="Report this as a bug of fcn-deploy: detailed layers were requested.",
        )
    # RTX compiles when the engine runs, and may list no layers before.
    layers = layers or known
    require_precision(layers, job.precision)
    return layers
