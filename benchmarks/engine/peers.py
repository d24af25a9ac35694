"""The runtimes that rows compare: load one with a graph, and bind its inputs and outputs on its device."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.engine.cases import Case, ComputePrecision, Runtime
from benchmarks.engine.cpu_runtimes import CPU_RUNTIMES, HostBound
from benchmarks.engine.workspace import Workspace
from benchmarks.report.results import NodeTime
from benchmarks.stats import timing
from benchmarks.stats.nodes import read_profile
from fcn_deploy.choices import Provider
from fcn_deploy.graph import layers
from fcn_deploy.images import Labels, Pixels
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME, ModelInfo, TensorSpec
from fcn_deploy.onnx_file import read_model
from fcn_deploy.runtime.base import Arrays, Bound, feed_of, labels_of
from fcn_deploy.runtime.ort import OrtRunner, preload_libraries
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.session_cache import PreparedModel, SessionCache
from fcn_deploy.storage import file_sha256


@dataclass(frozen=True)
class LoadedRuntime:
    """A runtime with a graph, ready to be timed."""

    bound: Bound  # the binding that is timed
    version: str  # of the runtime
    options: str  # the settings, for the report
    on_own_stream: bool = True  # whether CUDA events of this process can time it
    # number of nodes per execution provider; empty where the runtime has no providers
    placement: Mapping[str, int] = field(default_factory=dict)
    # runs a profiled copy a number of times and returns the time of each node; by default there is none
    profile: Callable[[int], tuple[NodeTime, ...]] = lambda _: ()

    def phases(self, feeds: Arrays, seconds: float) -> dict[str, list[int]]:
        """Return nanoseconds of copying inputs to a GPU, of the GPU's own work, and of copying outputs back.

        Each is sampled for `seconds`, at least once.
        """
        found = {
            "upload": timing.sample(lambda: self.bound.upload(feeds), seconds),
            "download": timing.sample(self.bound.download, seconds),
        }
        if self.on_own_stream:
            from benchmarks.engine.pytorch import between_events_ns

            end, found["device"] = time.monotonic() + seconds, [between_events_ns(self.bound.launch)]
            while time.monotonic() < end:
                found["device"].append(between_events_ns(self.bound.launch))
        return found


def load(case: Case, workspace: Workspace, provider: Provider, threads: int | None) -> LoadedRuntime:
    """Load the runtime and the graph of `case` onto the device of `provider`, without running them.

    Raises:
        ProviderError: the provider would not run it.
    """
    if case.runtime in CPU_RUNTIMES:
        return LoadedRuntime(*CPU_RUNTIMES[case.runtime](case, workspace, threads))
    if case.runtime is Runtime.TENSORRT:
        return _load_tensorrt(case, workspace)
    if case.runtime is Runtime.ONNXRUNTIME:
        return _load_onnxruntime(case, workspace, provider, threads)
    from benchmarks.engine.pytorch import load_pytorch

    return LoadedRuntime(*load_pytorch(case, workspace, provider, threads))


def _load_tensorrt(case: Case, workspace: Workspace) -> LoadedRuntime:
    from fcn_deploy.artifact.engine import open_engine
    from fcn_deploy.runtime.tensorrt import TrtRunner

    runner = TrtRunner(open_engine(workspace.plan), cuda_graph=case.cuda_graph)
    runner.__enter__()  # stays open as long as its process lives
    bound = HostEndToEnd(runner.bind(), runner.inputs[0], workspace.info) if case.end_to_end else runner.bind()
    placement = {name: len(nodes) for name, nodes in runner.placement.items()}
    options = f"{runner.engine_file.flavour}{', CUDA graph' if case.cuda_graph else ''}"
    # It runs on its own stream, and PyTorch's events are recorded on another one.
    return LoadedRuntime(bound, runner.engine_file.version, options, on_own_stream=False, placement=placement)


def _load_onnxruntime(case: Case, workspace: Workspace, provider: Provider, threads: int | None) -> LoadedRuntime:
    on_cpu = provider is Provider.CPU
    if not on_cpu:
        preload_libraries()
    options = OrtOptions(
        provider,
        threads=threads if on_cpu else None,
        tf32=case.precision is ComputePrecision.TF32,
        cuda_graph=case.cuda_graph,
        nhwc=case.nhwc,
        stream=None if on_cpu or case.cuda_graph else _own_stream(),
    )
    path = workspace.graph_path(case.graph)
    prepared = _prepared(workspace) if case.prepared else None
    # The entry of a session that computes something else is empty.
    if prepared is not None and not any(entry.bytes for entry in prepared.cache.entries()):
        raise RuntimeError("its session could not be prepared")
    runner = OrtRunner(path, options, prepared=prepared)
    runner.__enter__()  # stays open as long as its process lives
    bound: Bound = HostSession(runner) if case.session_run else runner.bind()
    if case.end_to_end:
        bound = HostEndToEnd(bound, runner.inputs[0], workspace.info)
    placement = {name: len(nodes) for name, nodes in runner.placement.items()}
    version = runner.name.split()[2]
    # The rest of the runner's name describes its arithmetic, e.g. that a CPU rounds half precision.
    more = [what for what, is_so in (("session.run", case.session_run), ("prepared session", case.prepared)) if is_so]
    described = ", ".join([str(options), *runner.name.split(", ")[1:], *more])
    loaded = LoadedRuntime(bound, version, described, not case.cuda_graph, placement)
    profiled = on_cpu and not case.end_to_end and not case.prepared
    return replace(loaded, profile=partial(_profile, path, options, workspace)) if profiled else loaded


def prepare_session(workspace: Workspace, threads: int | None) -> None:
    """Prepare the session of the bundle for the row that opens it; that row fails if this was not possible."""
    with OrtRunner(workspace.model_path, OrtOptions(threads=threads), prepared=_prepared(workspace)):
        pass


def _prepared(workspace: Workspace) -> PreparedModel:
    path = workspace.model_path
    return PreparedModel(SessionCache(workspace.folder / "sessions"), file_sha256(path), path.stat().st_size)


def _own_stream() -> int:
    from benchmarks.engine.pytorch import own_stream

    return own_stream()


def _profile(path: Path, options: OrtOptions, workspace: Workspace, runs: int) -> tuple[NodeTime, ...]:
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


class HostEndToEnd(HostBound):
    """A binding with NumPy's pre-processing before it and the choice of the largest logit after it.

    Either step is omitted if the model has pixels as input or labels as output.
    """

    def __init__(self, inner: Bound, spec: TensorSpec, info: ModelInfo) -> None:
        self._inner, self._spec, self._info = inner, spec, info
        self._pixels: Pixels = np.empty(0, np.uint8)
        self._labels: Labels = np.empty(0, np.uint8)

    def upload(self, feeds: Arrays) -> None:
        """Keep the N x H x W x 3 uint8 RGB pixels: everything else is part of the run."""
        self._pixels = feeds[PIXELS_NAME]

    def launch(self) -> None:
        """Pre-process, upload, compute, download, and take the largest logit: N x H x W uint8."""
        self._inner.upload(feed_of(self._spec, self._pixels, self._info.preprocessing))
        self._inner.run()
        self._labels = labels_of(self._inner.download(), self._info.boundary)

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Return the labels."""
        return {LABELS_NAME: self._labels}


class HostSession(HostBound):
    """An open session that copies its input to the device and its output back in every run."""

    def __init__(self, runner: OrtRunner) -> None:
        self._runner = runner
        self._feeds: Arrays = {}
        self._outputs: dict[str, npt.NDArray[Any]] = {}

    def upload(self, feeds: Arrays) -> None:
        """Keep the input on the host: copying it is part of the run."""
        self._feeds = feeds

    def launch(self) -> None:
        """Upload, compute, download."""
        self._outputs = self._runner.run(self._feeds)

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Return the outputs."""
        return self._outputs
