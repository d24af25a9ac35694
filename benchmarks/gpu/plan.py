"""The bundles and rows that are measured on a GPU, and the processes that export them in parallel."""

import contextlib
import os
import signal
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue

import torch

from benchmarks.engine.cases import CASES, Case
from benchmarks.engine.processes import WorkerFailure, WorkerProcess
from benchmarks.engine.run import graphs_of
from benchmarks.engine.workspace import Workspace, prepare, workspace_of
from exporters.export import ExportOptions, export
from exporters.onnx import OnnxOptions, default_opset
from exporters.precision.options import PrecisionOptions
from fcn_deploy.artifact.bundle import RebuildOptions, open_bundle
from fcn_deploy.choices import Head, ImageInput, Precision, Provider, Target, Variant
from fcn_deploy.errors import FcnDeployError

FP32, FP16, BF16 = Precision.FP32, Precision.FP16, Precision.BF16

# The same options for the plain graph and for ours: (row of the plain graph, ours).
PAIRS = (
    ("ort-plain-half", "ort"),
    ("ort-plain-half-nhwc", "ort-nhwc"),
    ("ort-plain-half-graph", "ort-graph"),
    ("ort-plain-half-nhwc-graph", "ort-nhwc-graph"),
)
END_TO_END = ("ort-e2e", "ort-graph-e2e", "ort-nhwc-graph-e2e")
_FLOAT = (
    "pytorch", "pytorch-tf32", "compile", "ort-plain", "ort-simplified", "ort", "ort-tf32", "ort-nhwc", "ort-graph",
)  # fmt: skip
_HALF = ("pytorch-fp16", "compile-fp16", *(row for pair in PAIRS for row in pair))
_LABELS = ("session-run", "session-run-e2e", "pytorch-e2e", "pytorch-fp16-e2e", *END_TO_END, "ort-nhwc-graph")
_FEW_FLOAT = ("pytorch", "ort-plain", "ort-simplified", "ort")
_FEW_HALF = ("pytorch-fp16", "ort-plain-half-nhwc-graph", "ort-nhwc-graph")
_BF16 = ("ort-plain-half", "ort", "ort-plain-half-graph", "ort-graph")
_FEW_LABELS = ("session-run-e2e", "ort-e2e", "ort-graph-e2e")


@dataclass(frozen=True)
class Entry:
    """One bundle and its rows."""

    variant: Variant  # which FCN
    precision: Precision  # of the bundle
    rows: tuple[str, ...]  # names of cases
    batch: int = 1  # images per run
    labels: bool = False  # whether input and output are uint8 pixels and labels instead of float images and logits

    def __str__(self) -> str:
        scope = ", pixels to labels" if self.labels else ""
        return f"FCN-{self.variant} {self.precision}, batch {self.batch}{scope}"

    @property
    def name(self) -> str:
        """Name of its folder, e.g. `fcn8s-fp16-b1-labels`."""
        return f"fcn{self.variant}-{self.precision}-b{self.batch}{'-labels' if self.labels else ''}"

    def cases(self, provider: Provider) -> tuple[Case, ...]:
        """Return the rows that `provider` has."""
        return tuple(case for case in CASES if case.name in self.rows and provider in case.providers)


PLAN: Sequence[Entry] = (
    Entry(Variant.FCN8S, FP16, _HALF),
    Entry(Variant.FCN8S, FP16, _LABELS, labels=True),
    Entry(Variant.FCN8S, FP16, _FEW_HALF, batch=16),
    Entry(Variant.FCN8S, FP32, _FLOAT),
    Entry(Variant.FCN32S, FP32, _FEW_FLOAT),
    Entry(Variant.FCN16S, FP32, _FEW_FLOAT),
    Entry(Variant.FCN8S, BF16, _BF16),
    Entry(Variant.FCN32S, FP16, _FEW_HALF),
    Entry(Variant.FCN16S, FP16, _FEW_HALF),
    Entry(Variant.FCN8S, FP16, _FEW_HALF, batch=4),
    Entry(Variant.FCN8S, FP16, _FEW_HALF, batch=2),
    Entry(Variant.FCN8S, FP16, _FEW_HALF, batch=8),
    *(Entry(variant, BF16, _BF16[:2]) for variant in (Variant.FCN32S, Variant.FCN16S)),
    *(Entry(variant, FP16, _FEW_LABELS, labels=True) for variant in (Variant.FCN32S, Variant.FCN16S)),
    *(Entry(variant, p, _FEW_LABELS[1:], labels=True) for p in (FP32, BF16) for variant in Variant),
)
# What a run of fewer minutes than this measures instead: FCN-8s end to end, in fp32 and in fp16. The entry with
# torch.compile comes last, because that row is left out where it does not fit.
SHORT_MINUTES = 4.0
HEADLINE: Sequence[Entry] = (
    Entry(Variant.FCN8S, FP16, ("session-run", "session-run-e2e", "pytorch-fp16-e2e", END_TO_END[-1]), labels=True),
    Entry(Variant.FCN8S, FP32, ("pytorch", "ort-plain", "ort-graph")),
    Entry(Variant.FCN8S, FP16, ("pytorch-fp16", "compile-fp16", *PAIRS[-1])),
)


def plan_for(minutes: float) -> Sequence[Entry]:
    """Return the bundles and rows of a run that may take so many minutes."""
    return HEADLINE if minutes < SHORT_MINUTES else PLAN


CORES_PER_PROCESS = 4
# The first bundles of the plan, this many, are exported before all others.
_MADE_FIRST = 3
_LARGE_BATCH = 8


@dataclass(frozen=True)
class Exports:
    """How every bundle of a plan is exported."""

    folder: Path  # parent of the folders of all bundles
    provider: Provider  # where the bundles are measured
    size: int  # height and width of the input in pixels
    channel_divisor: int  # more than 1 for narrow, quick networks

    def options(self, entry: Entry) -> ExportOptions:
        """Return the export options of one bundle, whose parity is checked when it is measured."""
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


def make(entry: Entry, exports: Exports, threads: int) -> Workspace:
    """Export one bundle with that many threads, and prepare the workspace of its rows beside it.

    Raises:
        FcnDeployError: it cannot be exported.
    """
    torch.set_num_threads(threads)
    folder = exports.folder / entry.name
    folder.mkdir()
    bundle = open_bundle(export(exports.options(entry)).path)
    workspace = workspace_of(bundle, folder, RebuildOptions())
    prepare(workspace, graphs_of(entry.cases(exports.provider), workspace.info))
    return workspace


class BundleMaker:
    """Exports all bundles of a plan in several processes, each on its share of the cores; a context manager.

    The first bundles and those of large batches, which take longest, are begun first. A process that dies loses only
    its bundle.

    Args:
        plan: the bundles.
        exports: how they are exported.
        cores: the cores that the processes may use.

    Attributes:
        futures: for each bundle its workspace, or the reason why there is none.
    """

    def __init__(self, plan: Sequence[Entry], exports: Exports, cores: Sequence[int]) -> None:
        self._exports = exports
        self._shares: SimpleQueue[tuple[int, ...]] = SimpleQueue()
        self._processes: dict[tuple[int, ...], WorkerProcess] = {}
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
        """Pause all processes while the block runs."""
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
        """Return the workspace of a bundle, or why there is none."""
        share = self._shares.get()
        try:
            if self._closed:
                return "the run is over"
            process = self._processes.get(share) or WorkerProcess(self._exports.folder / f"exports-{share[0]}.log")
            self._processes[share] = process
            answer = process.run(make, entry, self._exports, len(share), cores=share)
            if isinstance(answer, WorkerFailure):
                # Whether the process died or not, the next bundle gets a new one.
                self._processes.pop(share).close()
                return answer.message
            return answer
        except FcnDeployError as error:
            return error.problem
        finally:
            # Not earlier, because the next bundle on this share uses its process too.
            self._shares.put(share)
