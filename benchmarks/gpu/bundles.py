"""Exports the bundles of a plan and makes what their rows share, in processes beside each other."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import cast

from benchmarks.gpu.plan import Entry
from benchmarks.messages import Failure
from benchmarks.preparation import prepare
from benchmarks.processes import Process
from benchmarks.schedule import graphs_of
from benchmarks.workspace import Workspace, workspace_of
from exporters.export_options import ExportOptions
from exporters.onnx import OnnxOptions
from exporters.optimize import Target
from exporters.pipeline import export
from exporters.reduce import PrecisionOptions, default_opset
from fcn_deploy.bundle import open_bundle
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.model_info import Head, ImageInput
from fcn_deploy.runtime.provider import Provider

CORES_PER_PROCESS = 4
# So many of the plan's bundles are made before any other.
_MADE_FIRST = 3
_LARGE_BATCH = 8


@dataclass(frozen=True)
class Exports:
    """How every bundle of a plan is exported.

    Attributes:
        folder: where to.
        provider: where the bundles are measured.
        size: height and width of the input in pixels.
        channel_divisor: more than 1 for a quick stand-in.
    """

    folder: Path
    provider: Provider
    size: int
    channel_divisor: int

    def options(self, entry: Entry) -> ExportOptions:
        """Those of one bundle; its parity is checked where it is measured."""
        return ExportOptions(
            entry.variant,
            self.folder / entry.name / "bundle",
            channel_divisor=self.channel_divisor,
            onnx=OnnxOptions(self.size, self.size, entry.batch, default_opset(entry.precision)),
            target=Target.CPU if self.provider is Provider.CPU else Target.CUDA,
            head=Head.LABELS if entry.labels else Head.LOGITS,
            image_input=ImageInput.UINT8 if entry.labels else ImageInput.FLOAT,
            precision=PrecisionOptions(entry.precision),
            verify=False,
        )


def make(entry: Entry, exports: Exports) -> Workspace:
    """Export one bundle, and make the graphs and references of its rows beside it.

    Raises:
        FcnDeployError: it cannot be exported.
    """
    folder = exports.folder / entry.name
    folder.mkdir()
    bundle = open_bundle(export(exports.options(entry)).path)
    workspace = workspace_of(bundle, folder, None)
    prepare(workspace, graphs_of(entry.cases(exports.provider), workspace.info))
    return workspace


class BundleMaker:
    """Makes all bundles of a plan, each in a process of its own share of the cores; a context manager.

    The first ones and those of large batches, which take longest, are begun first. A process that dies ends its bundle
    and no other.

    Args:
        plan: the bundles.
        exports: how they are exported.
        cores: what may be used for it.
    """

    def __init__(self, plan: Sequence[Entry], exports: Exports, cores: Sequence[int]) -> None:
        self._exports = exports
        self._shares: SimpleQueue[tuple[int, ...]] = SimpleQueue()
        self._processes: dict[tuple[int, ...], Process] = {}
        self._closed = False
        shares = [tuple(cores[i : i + CORES_PER_PROCESS]) for i in range(0, len(cores), CORES_PER_PROCESS)]
        for share in shares:
            self._shares.put(share)
        self._threads = ThreadPoolExecutor(len(shares))
        first = sorted(plan, key=lambda entry: (plan.index(entry) >= _MADE_FIRST, entry.batch < _LARGE_BATCH))
        self.futures: dict[Entry, Future[Workspace | str]] = {
            entry: self._threads.submit(self._made, entry) for entry in first
        }

    def __enter__(self) -> "BundleMaker":
        return self

    def __exit__(self, *_: object) -> None:
        self._closed = True
        self._threads.shutdown(wait=False, cancel_futures=True)
        for process in list(self._processes.values()):
            process.close()
        self._threads.shutdown()

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Nothing is being made for as long as the block lasts."""
        self._signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._signal(signal.SIGCONT)

    def _signal(self, number: signal.Signals) -> None:
        for process in list(self._processes.values()):
            with contextlib.suppress(ProcessLookupError):
                os.kill(process.pid, number)

    def _made(self, entry: Entry) -> Workspace | str:
        """The workspace of a bundle, or why there is none."""
        share = self._shares.get()
        try:
            if self._closed:
                return "the run is over"
            process = self._processes.get(share) or Process(self._exports.folder / f"exports-{share[0]}.log")
            self._processes[share] = process
            answer = process.call("make_bundle", entry, self._exports, share)
            if isinstance(answer, Failure):
                # Whether it died or not, the next bundle gets a new one.
                self._processes.pop(share).close()
                return answer.message
            return cast("Workspace", answer)
        except FcnDeployError as error:
            return error.problem
        finally:
            # Only now, because whoever takes the share takes its process too.
            self._shares.put(share)
