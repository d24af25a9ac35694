"""Runs a benchmark: check the request, prepare each bundle, start a process per row, and let the rows take turns.

Bundles are measured one after the other; the rows of one bundle are interleaved.
"""

import contextlib
import math
import random
import sys
import tempfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.engine import environment
from benchmarks.engine.cases import (
    BASELINES,
    OURS,
    Case,
    ComputePrecision,
    Graph,
    choose,
    missing_runtime,
    problem_with,
)
from benchmarks.engine.ceilings import measure_ceilings, work_of
from benchmarks.engine.environment import visible_gpus
from benchmarks.engine.peers import prepare_session
from benchmarks.engine.processes import RowProcess, RowSpec, WorkerFailure, WorkerProcess, network_name
from benchmarks.engine.workspace import Workspace, prepare, workspace_of
from benchmarks.report.results import BenchReport, Ceilings, Row, RowStatus, WorkEstimate
from benchmarks.stats.timing import Protocol
from fcn_deploy.artifact import is_engine
from fcn_deploy.artifact.bundle import Bundle, RebuildOptions, check_checkpoint, check_rebuild, open_bundle
from fcn_deploy.choices import Provider
from fcn_deploy.doctor import available_memory_bytes
from fcn_deploy.errors import BundleError, CheckpointError, FcnDeployError, UsageError, check_range
from fcn_deploy.graph import layers
from fcn_deploy.model_info import ModelInfo, ModuleSpec, NetworkSpec
from fcn_deploy.models.rebuild import check_source
from fcn_deploy.onnx_file import read_model
from fcn_deploy.runtime.ort import require_provider
from fcn_deploy.storage import file_sha256


@dataclass(frozen=True)
class BenchOptions:
    """The options of a benchmark.

    Attributes:
        provider: the execution provider of all rows.
        rows: names of cases; empty means all cases of the provider.
        batches: only bundles of these batches; empty means all.
        protocol: how samples are taken.
        threads: number of cores that every row may use; None means all.
        rebuild: the checkpoint, or the user's own network, that the bundles were exported from, if any.
        command: the command line, for the record.
        answer_s: seconds after which a row fails when it has not answered; None waits for ever.
    """

    provider: Provider = Provider.CPU
    rows: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    protocol: Protocol = field(default_factory=Protocol)
    threads: int | None = None
    rebuild: RebuildOptions = field(default_factory=RebuildOptions)
    command: tuple[str, ...] = ()
    answer_s: float | None = None


@dataclass(frozen=True)
class BenchProgress:
    """The state of a running benchmark."""

    step: str  # the current step
    remaining_s: float | None = None  # estimated seconds until the end; None before there is an estimate


OnProgress = Callable[[BenchProgress], None]


def bench(paths: Sequence[Path], options: BenchOptions, on_progress: OnProgress = lambda _: None) -> BenchReport:
    """Measure every row of every bundle. A row that fails is marked, and the others continue.

    An interruption (KeyboardInterrupt) ends the run and returns what was measured until then.

    Raises:
        UsageError: an unknown row, a batch that no bundle has, two equal bundles, more threads than cores.
        BundleError: a bundle is missing, damaged, or was not written by this toolkit.
        CheckpointError: a bundle was exported from another checkpoint than the one given.
        ProviderError: the provider would not run.
    """
    # Read before this process uses a GPU, so that all processes on it are foreign.
    gpus = visible_gpus()
    require_provider(options.provider)
    _check_no_engines(paths)
    cases = choose(options.rows, options.provider)
    cores = _chosen_cores(options.threads)
    bundles = _chosen_bundles(paths, options)
    machine, times = environment.describe(cores, options.command) | {"gpus": gpus}, environment.cpu_times()
    precisions = {case.precision for case in cases} | _half_precisions(bundles, options.provider)
    schedule = Schedule(options, cores, len(bundles), on_progress)
    interrupted = False
    with tempfile.TemporaryDirectory() as folder, WorkerProcess(Path(folder) / "ceilings.log") as process:
        try:
            schedule.measure_ceilings(process, precisions)
            for bundle in bundles:
                schedule.measure_bundle(bundle, cases if options.rows else distinct(bundle, cases))
                # Measured again and again: if one measurement is slowed down, rows would exceed the ceilings.
                schedule.measure_ceilings(process, precisions)
        except KeyboardInterrupt:
            interrupted = True
    machine |= {
        "gpus_during": environment.ranges_of(schedule.gpu_readings),
        "stolen_share": environment.stolen_share(times),
    }
    return BenchReport(machine, asdict(options.protocol), schedule.all_rows(), schedule.ceilings, interrupted)


# Before its turn a row is warmed up this long, unless a single run takes longer.
_REWARM_S = 0.1
# Time before the first round, in rounds: loading, the first run, the parity run.
_RUNS_BEFORE = 3
# A runtime holds up to three copies of its weights while it packs them, besides its libraries.
_MODELS_PER_ROW, _MAPS_PER_ROW, _ROW_BYTES = 3, 6, 400_000_000
_SAME_GRAPH = {"none": Graph.PLAIN, "simplify": Graph.SIMPLIFIED}
_ELEMENT_BYTES = {
    ComputePrecision.FP32: 4,
    ComputePrecision.TF32: 4,
    ComputePrecision.FP16: 2,
    ComputePrecision.BF16: 2,
    ComputePrecision.INT8: 1,
}


class Schedule:
    """The rows of one benchmark, bundle after bundle.

    Args:
        options: what is measured.
        cores: the cores that every row is bound to.
        bundles: how many bundles there are to measure, for the estimate of the remaining time.
        on_progress: called at every step.
    """

    def __init__(self, options: BenchOptions, cores: tuple[int, ...], bundles: int, on_progress: OnProgress) -> None:
        self.ceilings: Ceilings | None = None
        self.gpu_readings: list[list[dict[str, Any]]] = []
        self._options, self._cores, self._bundles, self._on_progress = options, cores, bundles, on_progress
        self._finished: list[Row] = []
        self._processes: list[RowProcess] = []
        self._later_groups = 0

    def all_rows(self) -> tuple[Row, ...]:
        """Return every row so far."""
        return (*self._finished, *(process.row for process in self._processes))

    def measure_ceilings(self, process: WorkerProcess, precisions: Iterable[ComputePrecision]) -> None:
        """Measure the device's highest rates and keep the best of all calls; a failed measurement changes nothing."""
        self._announce("measure the ceilings of the device")
        options = self._options
        arguments = options.provider, tuple(sorted(set(precisions))), len(self._cores) or None
        answer = process.run(measure_ceilings, *arguments, options.protocol.ceiling_s, cores=self._cores)
        if not isinstance(answer, WorkerFailure):
            self.ceilings = answer.at_best(self.ceilings)

    def measure_bundle(self, bundle: Bundle, cases: Sequence[Case], prepared: Workspace | None = None) -> None:
        """Measure all rows of one bundle, in a new workspace unless one is prepared already."""
        with tempfile.TemporaryDirectory() as folder:
            workspace = prepared or workspace_of(bundle, Path(folder), self._options.rebuild)
            problem = None if prepared else self._prepare(workspace, cases)
            self._processes = self._row_processes(workspace, bundle, cases, problem)
            try:
                self._measure_groups(self._groups(bundle))
            finally:
                for process in self._processes:
                    process.close()
        self._finished += [process.row for process in self._processes]
        self._processes = []
        self._bundles -= 1

    def _prepare(self, workspace: Workspace, cases: Sequence[Case]) -> str | None:
        """Write the files that the rows share; if that fails, return the reason, which becomes every row's problem."""
        self._announce(f"export the plain graph of {workspace.info.network}, run the reference")
        with WorkerProcess(workspace.folder / "prepare.log") as process:
            answer = process.run(prepare, workspace, graphs_of(cases, workspace.info), cores=self._cores)
            if any(case.prepared for case in cases) and not isinstance(answer, WorkerFailure):
                # The row itself says that it has no prepared session.
                with contextlib.suppress(FcnDeployError):
                    process.run(prepare_session, workspace, len(self._cores) or None, cores=self._cores)
        return f"its reference could not be run: {answer.message}" if isinstance(answer, WorkerFailure) else None

    def _row_processes(
        self, workspace: Workspace, bundle: Bundle, cases: Sequence[Case], problem: str | None
    ) -> list[RowProcess]:
        """Create the rows, not started; those that cannot run here are skipped."""
        engine, engine_problem = _engine(workspace)
        found = []
        for case in (case.for_bundle(bundle.info, engine) for case in cases):
            spec = RowSpec(case, workspace, self._options.provider, self._cores)
            log = workspace.folder / f"{case.name}.log"
            process = RowProcess(spec, _work(workspace, bundle, case), log, self._options.answer_s)
            reason = problem or missing_runtime(case.runtime) or problem_with(case, bundle.info, workspace.shape[0])
            if case.graph is Graph.ENGINE:
                reason = reason or engine_problem
            if reason is not None:
                process.skip(reason)
            found.append(process)
        return found

    def _groups(self, bundle: Bundle) -> list[list[RowProcess]]:
        """Return the groups of rows that take turns: one group, if memory allows.

        The baseline and the row of the artifact itself are in every group that has room, so that all rows are compared
        with them in pairs of rounds.
        """
        able = [process for process in self._processes if process.row.status is RowStatus.PENDING]
        size = max(1, _free_bytes(self._options.provider) // row_bytes(bundle))
        if len(able) <= size:
            return [able]
        by_case = {process.row.key.case: process for process in able}
        baseline = next((case for case in BASELINES if case in by_case), None)
        in_all = [by_case[case] for case in (baseline, OURS) if case in by_case][: size - 1]
        others = [process for process in able if process not in in_all]
        groups = math.ceil(len(others) / (size - len(in_all)))
        return [in_all + [others[i] for i in part] for part in np.array_split(range(len(others)), groups)]

    def _measure_groups(self, groups: Sequence[Sequence[RowProcess]]) -> None:
        rounds = self._options.protocol.rounds
        for number, group in enumerate(groups):
            self._later_groups = len(groups) - number - 1
            later = [process for one in groups[number + 1 :] for process in one]
            self._start([process for process in group if process.row.status is RowStatus.PENDING], number * rounds)
            for turn in range(rounds):
                self._round(turn)
            for process in self._running():
                if process not in later:
                    self._announce(f"profile: {process.row.key}")
                    process.finish()

    def _start(self, processes: Sequence[RowProcess], first_turn: int) -> None:
        """Start rows whose first turn has that number, check their outputs, and warm them up."""
        # TensorRT times kernels while it loads, so its rows load one after the other.
        at_once = len(processes) if self._options.provider is not Provider.TENSORRT else 1
        for start in range(0, len(processes), at_once or 1):
            for process in processes[start : start + at_once]:
                process.start(first_turn)
            for process in processes[start : start + at_once]:
                self._announce(f"load: {process.row.key}")
                process.finish_loading()
        for process in filter(_is_running, processes):
            self._announce(f"first run and parity: {process.row.key}")
            process.first_run()
        for process in filter(_is_running, processes):
            self._announce(f"warm up: {process.row.key}")
            process.warm_up(self._options.protocol.warmup_s)

    def _round(self, turn: int) -> None:
        """Sample every row once, in a different order each round, so that no row always follows the same one."""
        running = self._running()
        random.Random(turn).shuffle(running)  # noqa: S311 - an order, no secret
        for position, process in enumerate(running):
            step = f"round {turn + 1} of {self._options.protocol.rounds}: {process.row.key}"
            self._announce(step, self._remaining_s(turn, position))
            if process.last_ns < _REWARM_S * 1e9:
                process.warm_up(_REWARM_S)
            process.sample(self._options.protocol.round_s)
            if self._options.provider is not Provider.CPU:
                self.gpu_readings.append(visible_gpus())

    def _running(self) -> list[RowProcess]:
        return list(filter(_is_running, self._processes))

    def _announce(self, step: str, remaining_s: float | None = None) -> None:
        self._on_progress(BenchProgress(step, remaining_s))

    def _remaining_s(self, turn: int, position: int) -> float:
        """Estimate the time of the remaining runs from the latest ones; later bundles count like this one."""
        rounds, running = self._options.protocol.rounds, self._running()
        per_round = sum(max(self._options.protocol.round_s, process.last_ns / 1e9) for process in running)
        here = per_round * (rounds - turn - position / max(len(running), 1))
        return here + (self._bundles - 1 + self._later_groups) * per_round * (rounds + _RUNS_BEFORE)


def _is_running(process: RowProcess) -> bool:
    return process.running


def graphs_of(cases: Sequence[Case], info: ModelInfo) -> frozenset[Graph]:
    """Return the graphs that the cases need, and the plain one, whose work is counted."""
    graphs = frozenset(case.graph for case in cases if problem_with(case, info) is None)
    return graphs | {Graph.PLAIN} if graphs - {Graph.BUNDLE, Graph.ENGINE} else graphs


def distinct(bundle: Bundle, cases: Sequence[Case]) -> tuple[Case, ...]:
    """Return the cases without those whose graph equals the bundle's."""
    same = _SAME_GRAPH.get(bundle.manifest["optimize"] if bundle.manifest else "")
    return tuple(case for case in cases if case.graph is not same)


def row_bytes(bundle: Bundle) -> int:
    """Estimate the most memory a row needs: packed weights, libraries, the largest maps and workspaces."""
    # What is computed once, from constants, counts among the weights.
    maps = [math.prod(layer.shape) for layer in layers(bundle.model) if layer.moved_bytes]
    weights = _MODELS_PER_ROW * bundle.model_path.stat().st_size
    return weights + _ROW_BYTES + _MAPS_PER_ROW * max(maps, default=0) * _ELEMENT_BYTES[ComputePrecision.FP32]


def _free_bytes(provider: Provider) -> int:
    """Return the free memory for rows, of the host and of the GPU if they run on one; unknown memory is no limit."""
    found = [available_memory_bytes()]
    if provider is not Provider.CPU:
        found += [gpu["memory_bytes"] - gpu["used_bytes"] for gpu in visible_gpus() if "memory_bytes" in gpu][:1]
    return min((free for free in found if free is not None), default=sys.maxsize)


def _engine(workspace: Workspace) -> tuple[ModelInfo | None, str | None]:
    """Return facts about the bundle's engine, or the reason why there is none to measure."""
    try:
        engine = workspace.engine()
    except BundleError as error:
        return None, error.problem
    if engine is None:
        return None, f"{workspace.plan.name} is missing: build it with fcn-deploy tensorrt"
    return engine.info, None


def _work(workspace: Workspace, bundle: Bundle, case: Case) -> WorkEstimate:
    model = bundle.model
    # The other graphs have the plain one's work: nodes that simplifying removes have no multiply-adds.
    path = workspace.graph_path(Graph.DIRECT if case.graph is Graph.DIRECT else Graph.PLAIN)
    if case.graph not in (Graph.BUNDLE, Graph.ENGINE) and path.exists():
        model = read_model(path)
    return work_of(model, layers(model), _ELEMENT_BYTES[case.precision])


def _half_precisions(bundles: Sequence[Bundle], provider: Provider) -> set[ComputePrecision]:
    """Return the half precisions of bundles, whose ceilings are measured too; a CPU computes them in float32."""
    found = {ComputePrecision(bundle.info.precision) for bundle in bundles}
    return found & {ComputePrecision.FP16, ComputePrecision.BF16} if provider is not Provider.CPU else set()


def _chosen_cores(threads: int | None) -> tuple[int, ...]:
    cores = environment.available_cores()
    if threads is not None:
        check_range("number of threads, one per core of this machine,", threads, 1, len(cores), option="--threads")
    return cores[:threads]


def _chosen_bundles(paths: Sequence[Path], options: BenchOptions) -> list[Bundle]:
    bundles = [(path, open_bundle(path)) for path in paths]
    _check_batches(bundles, options.batches)
    chosen = [bundle for _, bundle in bundles if not options.batches or bundle.input_shape[0] in options.batches]
    _check_opsets(chosen)
    _check_distinct(chosen)
    _check_sources(chosen, options.rebuild)
    return chosen


def _check_opsets(bundles: Sequence[Bundle]) -> None:
    """Check that all bundles state the opset in which the plain graph is exported again."""
    for bundle in bundles:
        if "" not in bundle.model.opset_imports:
            raise BundleError(
                f"{bundle.model_path} states no opset of ONNX's own operators", remedy="Export the model again."
            )


def _check_no_engines(paths: Sequence[Path]) -> None:
    engines = [str(path) for path in paths if is_engine(path)]
    if engines:
        raise UsageError(
            f"{', '.join(engines)}: bench measures an engine together with the bundle that it was built from",
            remedy="Pass the bundle with --provider cuda: the rows engine, engine-graph and engine-e2e run its plan.",
        )


def _check_distinct(bundles: Sequence[Bundle]) -> None:
    names = [f"{network_name(bundle.info)} {'x'.join(map(str, bundle.input_shape))}" for bundle in bundles]
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise UsageError(
            f"two bundles of {', '.join(twice)}: their rows would have the same names",
            remedy="Measure them one by one with --json, then `fcn-deploy compare` the two files.",
        )


def _check_sources(bundles: Sequence[Bundle], options: RebuildOptions) -> None:
    """Check what all bundles are rebuilt from first, because the last bundle is opened only after minutes."""
    path = options.checkpoint
    for bundle in bundles:
        check_rebuild(bundle.info, options)
        if isinstance(bundle.info.network, ModuleSpec):
            check_source(bundle.info.network, options)
    if path is not None:
        if not path.is_file():
            raise CheckpointError(f"checkpoint {path} is not a file", remedy="Check the path.")
        sha256 = file_sha256(path)
        for bundle in bundles:
            check_checkpoint(bundle.info.provenance, path, sha256)


def _check_batches(bundles: Sequence[tuple[Path, Bundle]], wanted: Sequence[int]) -> None:
    missing = sorted(set(wanted) - {bundle.input_shape[0] for _, bundle in bundles})
    if missing:
        path, bundle = bundles[0]
        network = bundle.info.network
        source = f"--variant {network.variant}" if isinstance(network, NetworkSpec) else f"--module {network.source}"
        raise UsageError(
            f"no bundle has a batch of {', '.join(map(str, missing))}: {path} has {bundle.input_shape[0]}, "
            "and a bundle's batch is fixed",
            remedy=f"Export one: fcn-deploy export {source} --batch {missing[0]} --output "
            f"{path.name}-b{missing[0]} (with the options {path.name} was exported with), and pass it too.",
        )
