"""Opens what a case names: one runtime with one graph, bound and ready to be timed."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from benchmarks.engine.cases import Case, Precision, Runtime
from benchmarks.engine.workspace import Workspace
from benchmarks.stats import timing
from benchmarks.stats.nodes import NodeTime, read_profile
from fcn_deploy.choices import Provider
from fcn_deploy.graph import layers
from fcn_deploy.images import Labels, Pixels
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME, TensorSpec
from fcn_deploy.onnx_file import read_model
from fcn_deploy.runtime.base import Arrays, Bound, feed_of, labels_of
from fcn_deploy.runtime.ort import OrtRunner, preload_libraries
from fcn_deploy.runtime.ort_options import OrtOptions


class HostEndToEnd(Bound):
    """Another binding with NumPy's pre-processing before it, and its choice of the largest logit behind it.

    Either is left out where the model takes pixels, or gives labels.
    """

    def __init__(self, inner: Bound, spec: TensorSpec) -> None:
        self._inner, self._spec = inner, spec
        self._pixels: Pixels = np.empty(0, np.uint8)
        self._labels: Labels = np.empty(0, np.uint8)

    def upload(self, feeds: Arrays) -> None:
        """Keep the N x H x W x 3 uint8 RGB pixels: everything else is part of the run."""
        self._pixels = feeds[PIXELS_NAME]

    def launch(self) -> None:
        """Pre-process, move, compute, move back, take the largest logit: N x H x W uint8."""
        self._inner.upload(feed_of(self._spec, self._pixels))
        self._inner.run()
        self._labels = labels_of(self._inner.download())

    def wait(self) -> None:
        """Nothing is left to do when a launch returns."""

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """The labels, which are on the host already."""
        return {LABELS_NAME: self._labels}


class HostSession(Bound):
    """An open session whose runs move the input to the device and the output back by themselves."""

    def __init__(self, runner: OrtRunner) -> None:
        self._runner = runner
        self._feeds: Arrays = {}
        self._outputs: dict[str, npt.NDArray[Any]] = {}

    def upload(self, feeds: Arrays) -> None:
        """Keep the input on the host: moving it is part of the run."""
        self._feeds = feeds

    def launch(self) -> None:
        """Move, compute, move back."""
        self._outputs = self._runner.run(self._feeds)

    def wait(self) -> None:
        """Nothing is left to do when a launch returns."""

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """The outputs, which are on the host already."""
        return self._outputs


@dataclass(frozen=True)
class Subject:
    """What is timed.

    Attributes:
        bound: the thing itself.
        version: of the runtime.
        options: what was set, for the report.
        on_own_stream: whether CUDA events of this process can time it.
        placement: number of nodes per execution provider; empty where a runtime has no such notion.
        profiled: runs a profiled copy a number of times and gives the time of each node, or None.
    """

    bound: Bound
    version: str
    options: str
    on_own_stream: bool = True
    placement: Mapping[str, int] = field(default_factory=dict)
    profiled: Callable[[int], tuple[NodeTime, ...]] | None = None

    def profile(self, runs: int) -> tuple[NodeTime, ...]:
        """Times per node over `runs` runs; empty where the runtime has none to read."""
        return self.profiled(runs) if self.profiled is not None else ()

    def phases(self, feeds: Arrays, seconds: float) -> dict[str, list[int]]:
        """Nanoseconds of moving inputs to a GPU, of the GPU's own work, and of moving outputs back.

        Each is sampled for `seconds`, once at least.
        """
        found = {
            "upload": timing.sample(lambda: self.bound.upload(feeds), seconds),
            "download": timing.sample(self.bound.download, seconds),
        }
        if self.on_own_stream:
            end, found["device"] = time.monotonic() + seconds, [between_events_ns(self.bound.launch)]
            while time.monotonic() < end:
                found["device"].append(between_events_ns(self.bound.launch))
        return found


def open_subject(case: Case, workspace: Workspace, provider: Provider, threads: int | None) -> Subject:
    """Load what `case` names onto the device of `provider`; nothing is run yet.

    Raises:
        ProviderError: the provider would not run it.
    """
    if case.runtime is Runtime.OPENVINO:
        return _open_openvino(case, workspace, threads)
    if case.runtime is Runtime.TENSORRT:
        return _open_tensorrt(case, workspace)
    if case.runtime is Runtime.ONNXRUNTIME:
        return _open_onnxruntime(case, workspace, provider, threads)
    return _open_pytorch(case, workspace, provider, threads)


def _open_pytorch(case: Case, workspace: Workspace, provider: Provider, threads: int | None) -> Subject:
    # Here, because it takes seconds to load and the other runtimes do without.
    import torch

    from benchmarks.engine.peers import pytorch
    from fcn_deploy.models.weights import rebuild

    torch.set_num_threads(threads or torch.get_num_threads())
    device = torch.device("cpu" if provider is Provider.CPU else "cuda")
    kind = pytorch.TorchEndToEnd if case.end_to_end else pytorch.TorchBound
    network = rebuild(workspace.info, workspace.checkpoint)
    return Subject(
        kind(network, case, workspace.shape, device),
        str(torch.__version__),
        pytorch.describe(case, on_gpu=device.type != "cpu"),
    )


def _open_openvino(case: Case, workspace: Workspace, threads: int | None) -> Subject:
    from benchmarks.engine.peers import openvino

    bound = openvino.OpenVinoBound(workspace.graph_path(case.graph), threads)
    return Subject(bound, openvino.VERSION, f"{threads} threads, latency hint" if threads else "latency hint")


def _open_tensorrt(case: Case, workspace: Workspace) -> Subject:
    from fcn_deploy.artifact.engine import open_engine
    from fcn_deploy.runtime.tensorrt import TrtRunner

    runner = TrtRunner(open_engine(workspace.plan), cuda_graph=case.cuda_graph)
    # Stays open as long as its process lives.
    runner.__enter__()
    bound = HostEndToEnd(runner.bind(), runner.inputs[0]) if case.end_to_end else runner.bind()
    placement = {name: len(nodes) for name, nodes in runner.placement.items()}
    options = f"{runner.engine_file.flavour}{', CUDA graph' if case.cuda_graph else ''}"
    # Its stream is its own, not the one that PyTorch's events are recorded on.
    return Subject(bound, runner.engine_file.version, options, on_own_stream=False, placement=placement)


def _open_onnxruntime(case: Case, workspace: Workspace, provider: Provider, threads: int | None) -> Subject:
    on_cpu = provider is Provider.CPU
    stream = None
    if not on_cpu:
        preload_libraries()

        stream = None if case.cuda_graph else own_stream()
    options = OrtOptions(
        provider,
        threads=threads if on_cpu else None,
        tf32=case.precision is Precision.TF32,
        cuda_graph=case.cuda_graph,
        nhwc=case.nhwc,
        stream=stream,
    )
    path = workspace.graph_path(case.graph)
    runner = OrtRunner(path, options)
    # Stays open as long as its process lives.
    runner.__enter__()
    bound: Bound = HostSession(runner) if case.session_run else runner.bind()
    if case.end_to_end:
        bound = HostEndToEnd(bound, runner.inputs[0])
    placement = {name: len(nodes) for name, nodes in runner.placement.items()}
    version = runner.name.split()[2]
    profiled = _profiler(path, options, workspace) if on_cpu and not case.end_to_end else None
    # Whatever else the runner's name says of how it computes: half precision is no such thing on a CPU.
    described = ", ".join([str(options), *runner.name.split(", ")[1:], *(["session.run"] if case.session_run else [])])
    return Subject(bound, version, described, not case.cuda_graph, placement, profiled)


def _profiler(path: Path, options: OrtOptions, workspace: Workspace) -> Callable[[int], tuple[NodeTime, ...]]:
    def profiled(runs: int) -> tuple[NodeTime, ...]:
        with (
            tempfile.TemporaryDirectory() as folder,
            OrtRunner(path, options, profile=Path(folder) / "profile") as runner,
        ):
            bound = runner.bind()
            bound.upload({runner.inputs[0].name: workspace.inputs()[0].feed(runner.inputs[0])})
            for _ in range(runs + 1):
                bound.run()
            counted = {layer.name: layer.multiply_adds for layer in layers(read_model(path))}
            return read_profile(runner.end_profiling(), counted, skip_runs=1)

    return profiled


def own_stream() -> int:
    """Make a stream PyTorch's current one and give its handle: a runtime that uses it is timed by PyTorch's events."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.set_stream(stream)
    return int(stream.cuda_stream)


def between_events_ns(launch: Callable[[], object]) -> int:
    """Nanoseconds the GPU needs for what `launch` puts on the current stream without waiting for it."""
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    launch()
    end.record()
    end.synchronize()
    return int(start.elapsed_time(end) * 1e6)
