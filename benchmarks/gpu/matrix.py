"""The rows of a plan on one GPU, bundle by bundle, in whatever time there is.

What was measured is written after every bundle, so that a run that is cut short keeps what it had. While the first rows
run, later bundles are still being exported, on other cores; that pauses while rows work on the host.
"""

import contextlib
import importlib.util
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
from benchmarks.engine.cases import Precision, Runtime
from benchmarks.engine.environment import available_cores, visible_gpus
from benchmarks.engine.processes import Failure, same_packages
from benchmarks.engine.schedule import BenchOptions, Schedule, network_name, own_process
from benchmarks.engine.workspace import Workspace
from benchmarks.gpu.plan import PLAN, BundleMaker, Entry, Exports
from benchmarks.readme import ROOT
from benchmarks.report.results import BenchReport, Row, RowKey
from benchmarks.stats.nodes import NodeTime
from fcn_deploy.artifact.bundle import open_bundle
from fcn_deploy.choices import Provider
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.ort import require_provider
from fcn_deploy.runtime.ort_options import OrtOptions

DOCTOR_FILE, TESTS_FILE = "doctor.txt", "gpu-tests.txt"
# Import paths and warnings as on the host: its packages are of other versions than the project's own.
_PYTEST = ("-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default")
# They share the GPU; most of their time goes into exports.
_MOST_PROCESSES = 4
_FOLDERS = ("tests/fcn_deploy/runtime", "tests/benchmarks/stats/test_nodes.py")


def doctor(output: Path, seconds: float = 60.0) -> None:
    """Write what `fcn-deploy doctor` finds, or what it has printed within `seconds`."""
    command = [sys.executable, "-m", "fcn_deploy", "doctor"]
    with (output / DOCTOR_FILE).open("wb") as log, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(  # noqa: S603 - our own command
            command,
            env=os.environ | same_packages(),
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )


def run_gpu_tests(output: Path, seconds: float) -> None:
    """Run the tests marked `gpu`, for at most `seconds`, and write what they print."""
    processes = min(_MOST_PROCESSES, len(available_cores()) // 2)
    parallel = ("-n", str(processes)) if processes > 1 and importlib.util.find_spec("xdist") is not None else ()
    command = [sys.executable, *_PYTEST, *parallel, "-p", "no:cacheprovider", *_FOLDERS]
    with (output / TESTS_FILE).open("wb") as log:
        running = subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=ROOT,
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


# Cores for the rows where there are enough for both; the others export.
_ROW_CORES = 6
# The tests for GPUs are not to take more than this share of the time.
_TESTS_SHARE = 0.4
# Kept for the times of nodes, each of which is sampled twice for so long.
_NODES_S, _NODE_SAMPLES_S = 45.0, 0.02
# What a row takes until one is known to take longer, and what compiling one takes besides.
_ROW_S, _COMPILING_S = 5.0, 60.0


@dataclass(frozen=True)
class MatrixOptions:
    """What is measured, and how long it may take.

    Attributes:
        output: folder of what is written.
        bench: how rows are measured.
        plan: bundles and rows, the most important first; the nodes of the first one's last row are timed one by one.
        seconds: after which no further bundle is begun.
        size: height and width of the input in pixels.
        channel_divisor: more than 1 for a quick stand-in.
        checks: first run the tests for GPUs, and write what they print.
    """

    output: Path
    bench: BenchOptions
    plan: Sequence[Entry] = PLAN
    seconds: float = 480.0
    size: int = 500
    channel_divisor: int = 1
    checks: bool = True


@dataclass
class Matrix:
    """A run of a plan, and what is known so far.

    Attributes:
        options: what was asked for.
        on_step: told what is being done.
        problems: why bundles, or nodes, were not measured, by name.
    """

    options: MatrixOptions
    on_step: OnStep = quietly
    problems: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        provider, cores = self.options.bench.provider, environment.available_cores()
        require_provider(provider)
        self._begun = time.monotonic()
        self._apart = provider is not Provider.CPU and len(cores) > _ROW_CORES
        self._row_cores, self._other_cores = (cores[:_ROW_CORES], cores[_ROW_CORES:]) if self._apart else (cores, cores)
        self._environment = environment.describe(self._row_cores, self.options.bench.command) | {"gpus": visible_gpus()}
        self._ticks = environment.cpu_times()
        self._plan = [entry for entry in self.options.plan if entry.cases(provider)]
        self._run = Schedule(self.options.bench, self._row_cores, len(self._plan), lambda _: None)
        self._nodes: tuple[NodeTime, ...] = ()
        self._profiled: RowKey | None = None
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
            "gpus_during": self._run.gpus.summary(),
            "stolen_share": environment.stolen_share(self._ticks),
            "not_measured": self.problems,
        }
        rows = tuple(self._with_nodes(row) for row in self._run.all_rows())
        protocol = asdict(self.options.bench.protocol)
        return BenchReport(self._environment | found, protocol, rows, self._run.ceilings, self._interrupted)

    def measure(self, on_bundle: "Callable[[Matrix], None]") -> None:
        """Run the tests, measure, time nodes; `on_bundle` is called after every bundle, and at the end.

        An interruption ends the run.
        """
        options, provider = self.options, self.options.bench.provider
        with ExitStack() as stack:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(ignore_cleanup_errors=True)))
            exports = Exports(folder, provider, options.size, options.channel_divisor)
            maker = stack.enter_context(BundleMaker(self._plan, exports, self._other_cores))
            gauge = stack.enter_context(own_process(folder / "ceilings.log"))
            precisions = {case.precision for entry in self._plan for case in entry.cases(provider)}
            if provider is not Provider.CPU:
                precisions |= {Precision(entry.precision) for entry in self._plan}
            try:
                if options.checks:
                    with self.on_step("tests for GPUs; meanwhile the first exports"):
                        run_gpu_tests(options.output, self.left_s * _TESTS_SHARE)
                with self.on_step("measure what the device can do at best"):
                    self._run.measure_ceilings(gauge, precisions)
                self._measure_all(maker, on_bundle)
                self._time_nodes(maker, folder)
                self._run.measure_ceilings(gauge, precisions)
            except KeyboardInterrupt:
                self._interrupted = True
            on_bundle(self)

    def _measure_all(self, maker: BundleMaker, on_bundle: "Callable[[Matrix], None]") -> None:
        pending = list(self._plan)
        while pending and self.left_s > _NODES_S:
            # Asked for once: the last may be finished between two looks, and the most important come first.
            made = [entry for entry in pending if maker.futures[entry].done()]
            if not made or (not self._apart and len(made) < len(pending)):
                wait([maker.futures[e] for e in pending if e not in made], min(self.left_s, 1.0), FIRST_COMPLETED)
                continue
            pending.remove(made[0])
            with maker.paused() if made[0].labels else nullcontext():
                self._measure(made[0], maker.futures[made[0]].result())
            on_bundle(self)
        self.problems |= {str(entry): "there was no time for it" for entry in pending}

    def _measure(self, entry: Entry, made: Workspace | str) -> None:
        cases = entry.cases(self.options.bench.provider)
        compiling = _COMPILING_S * sum(case.runtime is Runtime.COMPILE for case in cases)
        if isinstance(made, str):
            self.problems[str(entry)] = f"it could not be made: {made}"
        elif self.left_s - _NODES_S < self._row_s * len(cases) + compiling:
            self.problems[str(entry)] = "there was no time for it"
        else:
            begun, before = time.monotonic(), len(self._run.all_rows())
            with self.on_step(f"{entry}: {len(cases)} rows, {self.left_s:.0f} s left"):
                try:
                    self._run.measure_bundle(open_bundle(made.model_path.parent), cases, made)
                except Exception as error:  # whatever goes wrong with one bundle leaves the others
                    self.problems[str(entry)] = f"{type(error).__name__}: {error}"
            first_s = [row.measurement.first_ns / 1e9 for row in self._run.all_rows()[before:] if row.measurement]
            # Compiling is by far the longest of first runs, and says nothing about the next bundle.
            taken = time.monotonic() - begun - (max(first_s, default=0.0) if compiling else 0.0)
            self._row_s = max(self._row_s, taken / len(cases))
            if entry is not self._plan[0]:
                shutil.rmtree(made.folder, ignore_errors=True)

    def _time_nodes(self, maker: BundleMaker, folder: Path) -> None:
        """The nodes of the first bundle's last row."""
        entry, provider = self._plan[0], self.options.bench.provider
        future, case = maker.futures[entry], entry.cases(provider)[-1]
        made = future.result() if future.done() else "not made in time"
        if isinstance(made, str) or self.left_s < 0:
            return
        with (
            self.on_step(f"times of the nodes of {entry}, {case.name}"),
            maker.paused(),
            own_process(folder / "nodes.log", 2 * _NODES_S) as process,
        ):
            how = OrtOptions(provider, nhwc=case.nhwc)
            try:
                answer = process.call("node_times", made.model_path, how, _NODE_SAMPLES_S, _NODES_S)
            except FcnDeployError as error:
                answer = Failure(False, error.problem)
        if isinstance(answer, Failure):
            self.problems["times of nodes"] = answer.message
            return
        self.problems |= {f"node {name}": problem for name, problem in answer.problems.items()}
        self._profiled = RowKey(network_name(made.info), made.shape, case.name, str(provider))
        self._nodes = answer.nodes

    def _with_nodes(self, row: Row) -> Row:
        return replace(row, nodes=self._nodes) if row.key == self._profiled else row
