"""From an ONNX file to a serialised engine: configuration, build, and what became of the layers."""

import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from exporters.tensorrt.layers import listed_layers, network_layers, require_precision
from fcn_deploy.artifact.engine import LayerTypes
from fcn_deploy.choices import Precision
from fcn_deploy.errors import InputFileError, ProviderError, UsageError
from fcn_deploy.model_info import TensorSpec
from fcn_deploy.runtime.tensorrt_flavour import Flavour, Message, worst
from fcn_deploy.storage import staged_file

_LISTED = 10


def parsed(flavour: Flavour, builder: Any, path: Path) -> Any:
    """The strongly typed network of an ONNX file: each layer computes in the types that the file says.

    Raises:
        UsageError: TensorRT's parser refuses nodes of it; names all of them.
    """
    network = builder.create_network(flavour.network_flags())
    parser = flavour.trt.OnnxParser(network, flavour.log.logger)
    done = parser.parse_from_file(str(path))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not done or errors:
        raise _refused(flavour, errors)
    return network


def specs(flavour: Flavour, network: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What a network takes and what it gives."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return tuple(_spec(flavour, t) for t in inputs), tuple(_spec(flavour, t) for t in outputs)


def _spec(flavour: Flavour, tensor: Any) -> TensorSpec:
    import numpy as np

    return TensorSpec(tensor.name, tuple(tensor.shape), np.dtype(flavour.trt.nptype(tensor.dtype)).name)


def _refused(flavour: Flavour, errors: list[Any]) -> UsageError:
    lines = [f"  node {e.node()} {e.node_name() or 'without a name'} ({e.node_operator()}): {e.desc()}" for e in errors]
    rest = [f"  and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return UsageError(
        "\n".join([f"{flavour} refuses {len(errors)} nodes of the graph:", *lines[:_LISTED], *rest]),
        remedy="Export with another --opset or --optimize simplify; nodes of other makers need a plugin, "
        "which this command does not load.",
    )


@dataclass(frozen=True)
class Phase:
    """A phase of a build.

    Attributes:
        name: as TensorRT calls it.
        steps: how many it has.
        done: how many are.
    """

    name: str
    steps: int
    done: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.done}/{self.steps}"


# Called with the phases that are under way, the outermost first, from threads of TensorRT's.
OnPhases = Callable[[tuple[Phase, ...]], None]


def untold(_phases: tuple[Phase, ...]) -> None:
    """Tell nobody: the default."""


class Progress:
    """The phases under way; stopped builds end at their next step."""

    def __init__(self, on_phases: OnPhases) -> None:
        self._tell, self._lock = on_phases, threading.Lock()
        self._phases: dict[str, Phase] = {}
        self._stopped = False
        self.failure: Exception | None = None

    def stop(self) -> None:
        """End the build at its next step."""
        self._stopped = True

    def start(self, name: str, steps: int) -> None:
        """A phase begins."""
        self._update({**self._phases, name: Phase(name, steps)})

    def step(self, name: str, step: int) -> bool:
        """A step, counted from 0, is done; returns whether the build is to go on."""
        if name in self._phases:
            self._update({**self._phases, name: replace(self._phases[name], done=step + 1)})
        return not self._stopped

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._update({key: phase for key, phase in self._phases.items() if key != name})

    def _update(self, phases: dict[str, Phase]) -> None:
        with self._lock:
            self._phases = phases
            try:
                self._tell(tuple(phases.values()))
            except Exception as error:  # must not pass through TensorRT, which is not Python
                self.failure = self.failure or error
                self._stopped = True


def monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's own interface to `progress`; has to live as long as the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # TensorRT's bindings have no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


_WARNING = 2


def require_effect(flavour: Flavour) -> None:
    """Refuse a timing cache where it would do nothing.

    Raises:
        UsageError: on RTX, which times no kernels while it builds.
    """
    if not flavour.times_kernels:
        raise UsageError(
            f"{flavour} has no timing cache: it times no kernels while it builds, and compiles them where they run",
            remedy="Leave --timing-cache out.",
        )


def load(flavour: Flavour, config: Any, path: Path) -> Any:
    """Attach the cache at `path` to a builder's configuration, a new one if there is none; returns it.

    TensorRT itself goes on with an empty cache when it cannot read one, and says so in its log only.

    Raises:
        InputFileError: the file is no timing cache of this TensorRT and GPU.
    """
    data = path.read_bytes() if path.is_file() else b""
    with flavour.log.listening() as said:
        cache = config.create_timing_cache(data)
        attached = cache is not None and config.set_timing_cache(cache, False)
    problem = worst(said, _WARNING) if data else ""
    if problem or not attached or (path.is_file() and not data):
        raise InputFileError(
            f"timing cache {path} ({len(data)} bytes) cannot be used: {problem or f'{flavour} refuses it'}",
            remedy="It is damaged, or of another TensorRT or GPU: remove it, or name a new file, to begin anew.",
        )
    return cache


def save(cache: Any, path: Path) -> None:
    """Write a cache, in one move."""
    with staged_file(path) as staging:
        staging.write_bytes(bytes(cache.serialize()))


MEBIBYTE = 1 << 20


@dataclass(frozen=True)
class BuildPlan:
    """What the builder is told.

    Attributes:
        precision: what the graph is said to compute in.
        capabilities: what to build for ahead of time; empty builds for the GPU at hand.
        workspace_mb: limit on scratch memory in MiB; None leaves it to TensorRT.
        timing_cache: file to read and write what was measured, or None.
    """

    precision: Precision
    capabilities: tuple[str, ...]
    workspace_mb: int | None
    timing_cache: Path | None


@dataclass(frozen=True)
class Built:
    """A serialised engine, still in memory.

    Attributes:
        plan: TensorRT's own buffer.
        inputs: what it takes.
        outputs: what it gives.
        layers: types of the engine's layers as the builder lists them, or else of the network's.
        seconds: how long the builder took.
    """

    plan: Any
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    layers: LayerTypes
    seconds: float


def build(flavour: Flavour, path: Path, plan: BuildPlan, on_phases: OnPhases) -> Built:
    """Parse an ONNX file and build its engine.

    Raises:
        UsageError: nodes that TensorRT refuses, or a compute capability that it does not build for.
        ParityError: no layer computes in the precision asked for.
        InputFileError: the timing cache cannot be used.
        ProviderError: the build failed; says why in TensorRT's words.
    """
    builder = flavour.trt.Builder(flavour.log.logger)
    network = parsed(flavour, builder, path)
    typed = network_layers(network)
    require_precision(typed, plan.precision)
    config = builder.create_builder_config()
    _configure(flavour, config, plan)
    cache = load(flavour, config, plan.timing_cache) if plan.timing_cache is not None else None
    start = time.perf_counter()
    made, said = _run(flavour, builder, network, config, on_phases)
    seconds = time.perf_counter() - start
    layers = listed_layers(said) or typed
    require_precision(layers, plan.precision)
    if cache is not None and plan.timing_cache is not None:
        save(cache, plan.timing_cache)
    return Built(made, *specs(flavour, network), layers, seconds)


def _configure(flavour: Flavour, config: Any, plan: BuildPlan) -> None:
    trt = flavour.trt
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    # Set by default: float32 products would be rounded to 10 bits of fraction.
    config.clear_flag(trt.BuilderFlag.TF32)
    if plan.workspace_mb is not None:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, plan.workspace_mb * MEBIBYTE)
    targets = flavour.build_targets(plan.capabilities)
    if targets:
        config.num_compute_capabilities = len(targets)
        for index, target in enumerate(targets):
            config.set_compute_capability(target, index)


def _run(flavour: Flavour, builder: Any, network: Any, config: Any, on_phases: OnPhases) -> tuple[Any, list[Message]]:
    """Build on a thread of its own, so that this one can be interrupted: the builder then ends at its next step."""
    progress = Progress(on_phases)
    # Held until the build has ended.
    watching = monitor(flavour.trt, progress)
    config.progress_monitor = watching
    with flavour.log.listening() as said, ThreadPoolExecutor(1) as pool:
        future = pool.submit(builder.build_serialized_network, network, config)
        try:
            plan = future.result()
        except BaseException:
            progress.stop()
            raise
    if progress.failure is not None:
        raise progress.failure
    if plan is None:
        raise ProviderError(
            f"{flavour} could not build the engine: {worst(said) or 'it does not say why'}",
            remedy="Give it more --workspace if it names memory or finds no implementation; if it names types, pass "
            "--precision fp32, or newer GPUs to --compute-capability.",
        )
    return plan, said
