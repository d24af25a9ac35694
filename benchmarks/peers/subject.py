"""Opens what a case names: one runtime with one graph, bound and ready to be timed."""

import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks import timing
from benchmarks.cases import Case, Precision, Runtime
from benchmarks.peers.end_to_end import HostEndToEnd
from benchmarks.peers.host_session import HostSession
from benchmarks.profile import NodeTime, read_profile
from benchmarks.workspace import Workspace
from fcn_deploy.graph import layers
from fcn_deploy.onnx_file import read_model
from fcn_deploy.runtime.base import Arrays, Bound
from fcn_deploy.runtime.ort import OrtRunner, preload_libraries
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.provider import Provider


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
        from benchmarks.peers.cuda import between_events_ns

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

    from benchmarks.peers import pytorch
    from fcn_deploy.verification import rebuild

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
    from benchmarks.peers import openvino

    bound = openvino.OpenVinoBound(workspace.graph_path(case.graph), threads)
    return Subject(bound, openvino.VERSION, f"{threads} threads, latency hint" if threads else "latency hint")


def _open_tensorrt(case: Case, workspace: Workspace) -> Subject:
    from fcn_deploy.runtime.trt import TrtRunner

    runner = TrtRunner(workspace.plan, cuda_graph=case.cuda_graph)
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
        from benchmarks.peers.cuda import own_stream

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
