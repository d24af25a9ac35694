"""From an ONNX file to a serialised engine: configuration, build, and what became of the layers."""

import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from exporters.trt import timing_cache
from exporters.trt.layers import listed_layers, network_layers, require_precision
from exporters.trt.network import parsed, specs
from exporters.trt.progress import OnPhases, Progress, monitor
from fcn_deploy.errors import ProviderError
from fcn_deploy.model_info import Precision
from fcn_deploy.runtime.base import TensorSpec
from fcn_deploy.runtime.engine_file import LayerTypes
from fcn_deploy.runtime.tensorrt_flavour import Flavour
from fcn_deploy.runtime.tensorrt_log import Message, worst

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
    cache = timing_cache.load(flavour, config, plan.timing_cache) if plan.timing_cache is not None else None
    start = time.perf_counter()
    made, said = _run(flavour, builder, network, config, on_phases)
    seconds = time.perf_counter() - start
    layers = listed_layers(said) or typed
    require_precision(layers, plan.precision)
    if cache is not None and plan.timing_cache is not None:
        timing_cache.save(cache, plan.timing_cache)
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
