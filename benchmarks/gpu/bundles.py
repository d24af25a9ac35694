"""Exports the bundles of a plan and makes what their rows share, in processes beside each other."""

import multiprocessing
import os
import sys
from collections.abc import Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from dataclasses import dataclass
from multiprocessing.queues import Queue
from pathlib import Path

from benchmarks.gpu.plan import Entry
from benchmarks.preparation import prepare
from benchmarks.schedule import graphs_of
from benchmarks.workspace import Workspace, workspace_of
from exporters.export_options import ExportOptions
from exporters.onnx import OnnxOptions
from exporters.optimize import Target
from exporters.pipeline import export
from exporters.reduce import PrecisionOptions, default_opset
from fcn_deploy.bundle import open_bundle
from fcn_deploy.model_info import Head, ImageInput
from fcn_deploy.runtime.provider import Provider

CORES_PER_PROCESS = 4


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


def _make_or_tell(entry: Entry, exports: Exports) -> Workspace | str:
    """The workspace, or why there is none: errors of this package need not survive the way between processes."""
    try:
        return make(entry, exports)
    except Exception as error:  # whatever goes wrong with one bundle leaves the others
        return f"{type(error).__name__}: {error}"


class BundleMaker:
    """Makes all bundles of a plan, those of large batches first because they take longest; a context manager.

    Args:
        plan: the bundles.
        exports: how they are exported.
        cores: what may be used for it.
    """

    def __init__(self, plan: Sequence[Entry], exports: Exports, cores: Sequence[int]) -> None:
        spawn = multiprocessing.get_context("spawn")
        shares = [tuple(cores[i : i + CORES_PER_PROCESS]) for i in range(0, len(cores), CORES_PER_PROCESS)]
        given: Queue[tuple[int, ...]] = spawn.Queue()
        for share in shares:
            given.put(share)
        self._pool = ProcessPoolExecutor(len(shares), spawn, _stay_on, (given,))
        first = sorted(plan, key=lambda entry: entry.batch <= CORES_PER_PROCESS)
        self.futures: dict[Entry, Future[Workspace | str]] = {
            entry: self._pool.submit(_make_or_tell, entry, exports) for entry in first
        }

    def __enter__(self) -> "BundleMaker":
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        for process in multiprocessing.active_children():
            process.kill()

    def outcome(self, entry: Entry) -> Workspace | str | None:
        """The workspace of a bundle, or why there is none; None while it is being made."""
        future = self.futures[entry]
        if not future.done():
            return None
        error = future.exception()
        return future.result() if error is None else f"its process ended: {error}"


def _stay_on(given: "Queue[tuple[int, ...]]") -> None:
    """Bind this process to the next share of the cores."""
    import torch

    share = given.get()
    if sys.platform == "linux":
        os.sched_setaffinity(0, share)
    torch.set_num_threads(len(share))
