"""The order of a benchmark: what rows share is prepared, every row gets a process, and they take turns.

Bundles are measured one after the other; the rows of one bundle are interleaved.
"""

import contextlib
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.engine.cases import Case, Graph, Precision, missing_runtime, problem_with
from benchmarks.engine.ceilings import Ceilings, Work, work_of
from benchmarks.engine.environment import GpuWatch, visible_gpus
from benchmarks.engine.processes import Contender, Failure, Job, Process
from benchmarks.engine.workspace import Workspace, workspace_of
from benchmarks.report.results import Row, RowKey
from benchmarks.stats.timing import Protocol
from fcn_deploy.artifact.bundle import Bundle
from fcn_deploy.choices import Geometry, Head, ImageInput, Provider
from fcn_deploy.doctor import available_memory_bytes
from fcn_deploy.errors import BundleError
from fcn_deploy.graph import layers
from fcn_deploy.model_info import VOC_CLASSES, ModelInfo
from fcn_deploy.onnx_file import read_model


# A row that takes longer than this per run is not disturbed by what ran before it: it needs no new warm-up.
@dataclass(frozen=True)
class BenchOptions:
    """What is measured, where, and for how long.

    Attributes:
        provider: where.
        rows: names of cases; empty takes all that make sense on the provider.
        batches: only bundles of these batches; empty takes all.
        protocol: how samples are taken.
        threads: cores that every row may use, and no more; None is all there are.
        checkpoint: what the bundles were exported from, if from one.
        command: what was typed, for the record.
        answer_s: seconds after which a row that does not answer is given up; None waits for ever.
    """

    provider: Provider = Provider.CPU
    rows: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    protocol: Protocol = field(default_factory=Protocol)
    threads: int | None = None
    checkpoint: Path | None = None
    command: tuple[str, ...] = ()
    answer_s: float | None = None


@dataclass(frozen=True)
class Progress:
    """How far a benchmark is.

    Attributes:
        step: what is being done.
        rows: every row so far, finished or not.
        remaining_s: seconds until its end, as far as can be told; None before that.
    """

    step: str
    rows: tuple[Row, ...]
    remaining_s: float | None = None


OnProgress = Callable[[Progress], None]


_REWARM_S = 0.1
# Runs before the first round: the first, one more for parity, and what loading takes.
_RUNS_BEFORE = 3
# A runtime holds its weights up to three times while it packs them, and its own libraries.
_MODELS_PER_ROW, _MAPS_PER_ROW, _ROW_BYTES = 3, 6, 400_000_000
_SAME_GRAPH = {"none": Graph.PLAIN, "simplify": Graph.SIMPLIFIED}
_BYTES = {Precision.FP32: 4, Precision.TF32: 4, Precision.FP16: 2, Precision.BF16: 2, Precision.INT8: 1}


class Schedule:
    """The rows of one benchmark, bundle after bundle."""

    def __init__(self, options: BenchOptions, cores: tuple[int, ...], bundles: int, on_progress: OnProgress) -> None:
        self.ceilings: Ceilings | None = None
        self.gpus = GpuWatch()
        self._options, self._cores, self._bundles, self._on_progress = options, cores, bundles, on_progress
        self._finished: list[Row] = []
        self._contenders: list[Contender] = []

    def all_rows(self) -> tuple[Row, ...]:
        """Every row so far."""
        return (*self._finished, *(contender.row() for contender in self._contenders))

    def measure_ceilings(self, process: Process, precisions: Iterable[Precision]) -> None:
        """What the device can do at best, over all calls; stays as it was when the measurement itself fails."""
        self._tell("measure what the device can do at best")
        seconds = self._options.protocol.ceiling_s
        answer = process.call("ceilings", self._options.provider, tuple(sorted(set(precisions))), self._cores, seconds)
        if not isinstance(answer, Failure):
            self.ceilings = answer.at_best(self.ceilings)

    def measure_bundle(self, bundle: Bundle, cases: Sequence[Case], prepared: Workspace | None = None) -> None:
        """All rows of one bundle, in a workspace of their own unless one is prepared already."""
        with tempfile.TemporaryDirectory() as folder:
            workspace = prepared or workspace_of(bundle, Path(folder), self._options.checkpoint)
            problem = None if prepared else self._prepare(workspace, cases)
            self._contenders = self._enter(workspace, bundle, cases, problem)
            try:
                for number, group in enumerate(self._groups(bundle)):
                    self._measure(group, number)
            finally:
                for contender in self._contenders:
                    contender.close()
        self._finished += [contender.row() for contender in self._contenders]
        self._contenders = []
        self._bundles -= 1

    def _prepare(self, workspace: Workspace, cases: Sequence[Case]) -> str | None:
        """Make what the rows share; the reason why that failed, which is then every row's."""
        self._tell(f"export the plain graph of {workspace.info.network}, run the reference")
        with own_process(workspace.folder / "prepare.log") as process:
            answer = process.call("prepare", workspace, graphs_of(cases, workspace.info), self._cores)
        return f"its reference could not be run: {answer.message}" if isinstance(answer, Failure) else None

    def _enter(
        self, workspace: Workspace, bundle: Bundle, cases: Sequence[Case], problem: str | None
    ) -> list[Contender]:
        contenders = []
        engine, engine_problem = _engine(workspace)
        for case in (case.on(bundle.info, engine) for case in cases):
            job = Job(case, workspace, self._options.provider, self._cores)
            key = RowKey(network_name(bundle.info), workspace.shape, case.name, str(self._options.provider))
            log, work = workspace.folder / f"{case.name}.log", _work(workspace, bundle, case)
            contender = Contender(job, key, work, log, self._options.answer_s)
            reason = problem or missing_runtime(case.runtime) or problem_with(case, bundle.info)
            if case.graph is Graph.ENGINE:
                reason = reason or engine_problem
            if reason is not None:
                contender.skip(reason)
            contenders.append(contender)
        return contenders

    def _groups(self, bundle: Bundle) -> Iterator[list[Contender]]:
        """Rows that are measured together: all of them, unless memory is too short for that."""
        able = [contender for contender in self._contenders if not contender.skipped]
        size = max(1, min(len(able), _free_bytes(self._options.provider) // row_bytes(bundle)))
        for start in range(0, len(able), size):
            yield able[start : start + size]

    def _measure(self, group: Sequence[Contender], number: int) -> None:
        protocol = self._options.protocol
        # TensorRT builds its engines while it loads, by timing kernels: there rows load one after the other.
        at_once = len(group) if self._options.provider is not Provider.TENSORRT else 1
        for start in range(0, len(group), at_once):
            for contender in group[start : start + at_once]:
                contender.start(number)
            for contender in group[start : start + at_once]:
                self._tell(f"load {contender.key}")
                contender.finish_loading()
        for contender in self._running():
            self._tell(f"first run and parity of {contender.key}")
            contender.first_run()
        for contender in self._running():
            self._tell(f"warm up {contender.key}")
            contender.warm_up(protocol.warmup_s)
        for turn in range(protocol.rounds):
            self._round(turn)
        for contender in self._running():
            self._tell(f"profile {contender.key}")
            contender.finish()

    def _round(self, turn: int) -> None:
        """One round, in an order of its own, so that no row always follows the same neighbour."""
        running = self._running()
        random.Random(turn).shuffle(running)  # noqa: S311 - an order, no secret
        for position, contender in enumerate(running):
            step = f"round {turn + 1} of {self._options.protocol.rounds}: {contender.key}"
            self._tell(step, self._remaining_s(turn, position))
            if contender.last_ns < _REWARM_S * 1e9:
                contender.warm_up(_REWARM_S)
            contender.sample(self._options.protocol.round_s)
            if self._options.provider is not Provider.CPU:
                self.gpus.look()

    def _running(self) -> list[Contender]:
        return [contender for contender in self._contenders if contender.running]

    def _tell(self, step: str, remaining_s: float | None = None) -> None:
        self._on_progress(Progress(step, self.all_rows(), remaining_s))

    def _remaining_s(self, turn: int, position: int) -> float:
        """What the runs still to come take at their latest pace; later bundles are taken to be like this one."""
        rounds, running = self._options.protocol.rounds, self._running()
        per_round = sum(max(self._options.protocol.round_s, contender.last_ns / 1e9) for contender in running)
        here = per_round * (rounds - turn - position / max(len(running), 1))
        return here + (self._bundles - 1) * per_round * (rounds + _RUNS_BEFORE)


def graphs_of(cases: Sequence[Case], info: ModelInfo) -> frozenset[Graph]:
    """The graphs that have to be there for what of `cases` makes sense; also the plain one, whose work is counted."""
    graphs = frozenset(case.graph for case in cases if problem_with(case, info) is None)
    return graphs | {Graph.PLAIN} if graphs - {Graph.BUNDLE, Graph.ENGINE} else graphs


def distinct(bundle: Bundle, cases: Sequence[Case]) -> tuple[Case, ...]:
    """The cases without those whose graph is the bundle's own under another name."""
    same = _SAME_GRAPH.get(bundle.manifest["optimize"] if bundle.manifest else "")
    return tuple(case for case in cases if case.graph is not same)


@contextlib.contextmanager
def own_process(log: Path, limit_s: float | None = None) -> Iterator[Process]:
    """A worker process for as long as the block lasts; see `Process` for the limit."""
    process = Process(log, limit_s=limit_s)
    try:
        yield process
    finally:
        process.close()


def network_name(info: ModelInfo) -> str:
    """What tells networks apart in a report, e.g. `FCN-8s int8`, `FCN-8s pixels to labels` or `FCN-8s caffe / 16`."""
    network, precision = info.network, Precision(info.precision)
    caffe = " caffe" if network.geometry is Geometry.CAFFE else ""
    narrow = f" / {network.channel_divisor}" if network.channel_divisor > 1 else ""
    classes = f", {network.num_classes} classes" if network.num_classes != len(VOC_CLASSES) else ""
    reduced = "" if precision is Precision.FP32 else f" {precision}"
    ends = info.image_input is ImageInput.UINT8, info.head is Head.LABELS
    heads = {(True, True): " pixels to labels", (True, False): " from pixels", (False, True): " to labels"}
    return f"FCN-{network.variant}{caffe}{narrow}{classes}{reduced}{heads.get(ends, '')}"


def row_bytes(bundle: Bundle) -> int:
    """What a row takes at most, roughly: weights while they are packed, libraries, the largest maps and workspaces."""
    largest = max((math.prod(layer.shape) for layer in layers(bundle.model)), default=0) * _BYTES[Precision.FP32]
    weights = _MODELS_PER_ROW * bundle.model_path.stat().st_size
    return weights + _ROW_BYTES + _MAPS_PER_ROW * largest


def _free_bytes(provider: Provider) -> int:
    """Memory for rows: of the host, and of the GPU where they run on one; without an answer it counts as endless."""
    found = [available_memory_bytes()]
    if provider is not Provider.CPU:
        found += [gpu["memory_bytes"] - gpu["used_bytes"] for gpu in visible_gpus() if "memory_bytes" in gpu][:1]
    return min((free for free in found if free is not None), default=sys.maxsize)


def _engine(workspace: Workspace) -> tuple[ModelInfo | None, str | None]:
    """Facts of the bundle's engine, or the reason why there is none to measure."""
    try:
        engine = workspace.engine()
    except BundleError as error:
        return None, error.problem
    if engine is None:
        return None, f"there is no {workspace.plan.name}: fcn-deploy tensorrt builds it"
    return engine.info, None


def _work(workspace: Workspace, bundle: Bundle, case: Case) -> Work:
    model = bundle.model
    plain = workspace.graph_path(Graph.PLAIN)
    if case.graph not in (Graph.BUNDLE, Graph.ENGINE) and plain.exists():
        # What simplifying leaves out has no multiply-adds.
        model = read_model(plain)
    return work_of(model, layers(model), _BYTES[case.precision])
