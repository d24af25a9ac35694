"""Measures the rows of a plan on one GPU, bundle by bundle, within a given time.

While the first rows run, later bundles are exported on other cores; exports pause while rows work on the host. The
report is written while rows run, so that a run that is killed keeps what it had.
"""

import contextlib
import importlib.util
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, wait
from contextlib import ExitStack, nullcontext
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

from benchmarks.engine import environment
from benchmarks.engine.cases import ComputePrecision, Runtime
from benchmarks.engine.environment import available_cores, visible_gpus
from benchmarks.engine.processes import WorkerFailure, WorkerProcess, network_name, same_packages
from benchmarks.engine.run import BenchOptions, BenchProgress, Schedule
from benchmarks.engine.workspace import Workspace
from benchmarks.gpu.plan import PLAN, SHORT_MINUTES, BundleMaker, Entry, Exports
from benchmarks.report.results import BenchReport, NodeTime, RowKey
from benchmarks.stats.nodes import NodeTimes, time_nodes
from fcn_deploy.artifact.bundle import open_bundle
from fcn_deploy.choices import Provider
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.ort import require_provider
from fcn_deploy.runtime.ort_options import OrtOptions

DOCTOR_FILE, TESTS_FILE = "doctor.txt", "gpu-tests.txt"
# Without the project's pytest options, which expect its versions of packages.
_PYTEST = ("-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default")
# The tests share the GPU; most of their time goes into exports.
_TEST_PROCESSES = 4
_TESTED = ("tests/fcn_deploy/runtime", "tests/benchmarks/stats/test_nodes.py")
# Those of a short run, and how long they may take: plain and bound runs, and the graph of fp16 as it is shipped.
QUICK_TESTS, _QUICK_TESTS_S = "test_cuda_agrees or (test_it_computes and 8s-floor-exact-fp16)", 20.0


def doctor(output: Path, seconds: float = 60.0) -> None:
    """Write the findings that `fcn-deploy doctor` prints within `seconds`."""
    _run_into(output / DOCTOR_FILE, ("-m", "fcn_deploy", "doctor"), Path.cwd(), seconds)


def run_gpu_tests(output: Path, seconds: float, selected: str = "") -> None:
    """Run the tests marked `gpu`, or those of them that `-k` selects, for at most `seconds`; write what they print."""
    processes = min(_TEST_PROCESSES, len(available_cores()) // 2)
    parallel = ("-n", str(processes)) if processes > 1 and importlib.util.find_spec("xdist") is not None else ()
    repository = Path(__file__).parents[2]
    arguments = (*_PYTEST, *parallel, "-p", "no:cacheprovider", "-k", selected, *_TESTED)
    _run_into(output / TESTS_FILE, arguments, repository, seconds)


def _run_into(path: Path, arguments: Sequence[str], folder: Path, seconds: float) -> None:
    """Run Python for at most `seconds`, and write what it prints to a file."""
    with path.open("wb") as log:
        running = subprocess.Popen(  # noqa: S603 - our own commands
            [sys.executable, *arguments],
            cwd=folder,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | same_packages(),
            start_new_session=True,  # so that its own processes can be ended with it
        )
        try:
            running.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {seconds:.0f} s\n".encode())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()


# Cores for the rows if there are enough for both; the other cores export.
_ROW_CORES = 6
# The tests for GPUs may take this share of the time.
_TESTS_SHARE = 0.4
# Seconds reserved for timing nodes, and seconds of samples for each of a node's two graphs.
_NODES_S, _NODE_SAMPLES_S = 45.0, 0.02
# The estimated time of a row until one takes longer, and the additional time to compile one.
_ROW_S, _COMPILING_S = 5.0, 60.0
# While rows run, the report is written at most this often.
_WRITE_EVERY_S = 2.0
_NO_TIME = "the time budget was used up"


@dataclass(frozen=True)
class MatrixOptions:
    """The options of a run of a plan."""

    output: Path  # folder for the files
    bench: BenchOptions  # how rows are measured
    # bundles and rows, most important first; the nodes of the first bundle's last row are timed one by one
    plan: Sequence[Entry] = PLAN
    seconds: float = 480.0  # time after which no further bundle is begun
    size: int = 500  # height and width of the input
    channel_divisor: int = 1  # more than 1 for narrow, quick networks
    checks: bool = True  # run the tests for GPUs first

    @property
    def short(self) -> bool:
        """Whether there is time for few tests only, and none for the times of nodes."""
        return self.seconds < 60 * SHORT_MINUTES

    @property
    def nodes_s(self) -> float:
        """Seconds reserved for the times of nodes."""
        return 0.0 if self.short else _NODES_S


@dataclass
class Matrix:
    """A run of a plan, and its results so far."""

    options: MatrixOptions  # what was asked for
    write: "Callable[[Matrix], None]"  # called after every bundle, while rows run, and at the end
    on_step: OnStep = quietly  # called with a description of each step
    problems: dict[str, str] = field(default_factory=dict)  # why bundles or nodes were not measured, by name

    def __post_init__(self) -> None:
        provider, cores = self.options.bench.provider, available_cores()
        require_provider(provider)
        self._begun = self._written = time.monotonic()
        self._separate = provider is not Provider.CPU and len(cores) > _ROW_CORES
        row_cores, self._export_cores = (cores[:_ROW_CORES], cores[_ROW_CORES:]) if self._separate else (cores, cores)
        self._machine = environment.describe(row_cores, self.options.bench.command) | {"gpus": visible_gpus()}
        self._times = environment.cpu_times()
        self._plan = [entry for entry in self.options.plan if entry.cases(provider)]
        self._schedule = Schedule(self.options.bench, row_cores, len(self._plan), self._progress)
        self._nodes: dict[RowKey, tuple[NodeTime, ...]] = {}
        self._row_s = _ROW_S
        self._interrupted = False

    @property
    def left_s(self) -> float:
        """Seconds that are left."""
        return self._begun + self.options.seconds - time.monotonic()

    @property
    def report(self) -> BenchReport:
        """What was measured so far."""
        found = {
            "gpus_during": environment.ranges_of(self._schedule.gpu_readings),
            "stolen_share": environment.stolen_share(self._times),
            "not_measured": self.problems,
        }
        rows = tuple(replace(row, nodes=self._nodes.get(row.key, row.nodes)) for row in self._schedule.all_rows())
        protocol = asdict(self.options.bench.protocol)
        return BenchReport(self._machine | found, protocol, rows, self._schedule.ceilings, self._interrupted)

    def measure(self) -> None:
        """Run the tests, measure every bundle, time nodes. An interruption ends the run."""
        options, provider = self.options, self.options.bench.provider
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            exports = Exports(folder, provider, options.size, options.channel_divisor)
            maker = stack.enter_context(BundleMaker(self._plan, exports, self._export_cores))
            process = stack.enter_context(WorkerProcess(folder / "ceilings.log"))
            precisions = {case.precision for entry in self._plan for case in entry.cases(provider)}
            if provider is not Provider.CPU:
                precisions |= {ComputePrecision(entry.precision) for entry in self._plan}
            try:
                if options.checks:
                    seconds = min(_QUICK_TESTS_S if options.short else math.inf, self.left_s * _TESTS_SHARE)
                    with self.on_step("tests for GPUs, and the first exports"):
                        run_gpu_tests(options.output, seconds, QUICK_TESTS if options.short else "")
                with self.on_step("measure the ceilings of the device"):
                    self._schedule.measure_ceilings(process, precisions)
                self._measure_all(maker)
                if not options.short:
                    self._time_nodes(maker, folder)
                self._schedule.measure_ceilings(process, precisions)
            except KeyboardInterrupt:
                self._interrupted = True
            self.write(self)

    def _progress(self, progress: BenchProgress) -> None:
        """Write the report now and then while rows take turns."""
        if progress.remaining_s is not None and time.monotonic() > self._written + _WRITE_EVERY_S:
            self.write(self)
            self._written = time.monotonic()

    def _measure_all(self, maker: BundleMaker) -> None:
        pending = list(self._plan)
        while pending and self.left_s > self.options.nodes_s:
            # Queried only once, because more bundles may be finished meanwhile, and the most important come first.
            made = [entry for entry in pending if maker.futures[entry].done()]
            if not made or (not self._separate and len(made) < len(pending)):
                wait([maker.futures[e] for e in pending if e not in made], min(self.left_s, 1.0), FIRST_COMPLETED)
                continue
            pending.remove(made[0])
            with maker.paused() if made[0].labels else nullcontext():
                self._measure(made[0], maker.futures[made[0]].result())
            self.write(self)
        self.problems |= {str(entry): _NO_TIME for entry in pending}

    def _measure(self, entry: Entry, made: Workspace | str) -> None:
        cases = entry.cases(self.options.bench.provider)
        compiled = [case.name for case in cases if case.runtime is Runtime.COMPILE]
        if isinstance(made, str):
            self.problems[str(entry)] = f"it could not be exported: {made}"
            return
        left_s = self.left_s - self.options.nodes_s
        if compiled and left_s < self._row_s * len(cases) + _COMPILING_S * len(compiled):
            cases = tuple(case for case in cases if case.name not in compiled)
            self.problems[f"{entry}: {', '.join(compiled)}"] = _NO_TIME
            compiled = []
        if not cases or left_s < self._row_s * len(cases):
            self.problems[str(entry)] = _NO_TIME
            return
        begun, before = time.monotonic(), len(self._schedule.all_rows())
        with self.on_step(f"{entry}: {len(cases)} rows, {self.left_s:.0f} s left"):
            try:
                self._schedule.measure_bundle(open_bundle(made.model_path.parent), cases, made)
            except Exception as error:  # an error in one bundle must not end the others
                self.problems[str(entry)] = f"{type(error).__name__}: {error}"
        first_s = [row.measurement.first_ns / 1e9 for row in self._schedule.all_rows()[before:] if row.measurement]
        # Compilation is by far the longest first run, and later bundles have none.
        taken = time.monotonic() - begun - (max(first_s, default=0.0) if compiled else 0.0)
        self._row_s = max(self._row_s, taken / len(cases))
        if entry is not self._plan[0]:
            shutil.rmtree(made.folder, ignore_errors=True)

    def _time_nodes(self, maker: BundleMaker, folder: Path) -> None:
        """Time the nodes of the first bundle's last row."""
        entry, provider = self._plan[0], self.options.bench.provider
        future, case = maker.futures[entry], entry.cases(provider)[-1]
        made = future.result() if future.done() else "not exported in time"
        if isinstance(made, str) or self.left_s < 0:
            return
        with (
            self.on_step(f"times of the nodes of {entry}, {case.name}"),
            maker.paused(),
            WorkerProcess(folder / "nodes.log", limit_s=2 * _NODES_S) as process,
        ):
            options = OrtOptions(provider, nhwc=case.nhwc)
            answer: NodeTimes | WorkerFailure
            try:
                answer = process.run(time_nodes, made.model_path, options, _NODE_SAMPLES_S, _NODES_S)
            except FcnDeployError as error:
                answer = WorkerFailure(False, error.problem)
        if isinstance(answer, WorkerFailure):
            self.problems["times of nodes"] = answer.message
            return
        self.problems |= {f"node {name}": problem for name, problem in answer.problems.items()}
        self._nodes[RowKey(network_name(made.info), made.shape, case.name, str(provider))] = answer.nodes
