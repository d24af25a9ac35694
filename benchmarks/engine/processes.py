"""One row while it is being measured: its process, and what is known of it so far."""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.engine.cases import Case
from benchmarks.engine.ceilings import Work
from benchmarks.engine.workspace import Workspace
from benchmarks.report.results import Row, RowKey, Status
from benchmarks.stats.nodes import NodeTime
from benchmarks.stats.timing import Measurement
from fcn_deploy.choices import Provider
from fcn_deploy.errors import FcnDeployError, ParityError
from fcn_deploy.parity.compare import LabelComparison
from fcn_deploy.parity.report import ParityReport


@dataclass(frozen=True)
class Job:
    """What one process measures, and where it may run."""

    case: Case
    workspace: Workspace
    provider: Provider
    cores: tuple[int, ...]


@dataclass(frozen=True)
class Opened:
    """A runtime that is ready to run: version, what was set, how many nodes each provider runs, nanoseconds it took."""

    version: str
    options: str
    placement: dict[str, int]
    load_ns: int


@dataclass(frozen=True)
class FirstRuns:
    """Nanoseconds of the very first run and of the one after it, and what was computed against the reference."""

    first_ns: int
    next_ns: int
    comparisons: list[LabelComparison]


@dataclass(frozen=True)
class Samples:
    """One round: nanoseconds of each run, and of each phase that was timed besides."""

    run_ns: list[int]
    phases_ns: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a row stopped.

    Attributes:
        out_of_memory: whether there was too little memory.
        message: what the runtime said, in one line.
    """

    out_of_memory: bool
    message: str


_LAST_BYTES = 4000
# PyTorch then asks for huge pages for its large maps, which makes it a fifth faster here: every PyTorch row has it,
# whoever starts the benchmark.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}


class Process:
    """A process of `benchmarks.engine.worker`, started at once; what it prints goes to `log`.

    Args:
        log: file for what it prints.
        variables: environment variables besides this process's own.
        limit_s: seconds after which it is ended when it has not answered; None waits for ever.
    """

    def __init__(self, log: Path, variables: Mapping[str, str] | None = None, limit_s: float | None = None) -> None:
        self._log, self._limit_s = log, limit_s
        # The same packages as here, and none that lie about in the working directory (-P).
        environment = HUGE_PAGES | os.environ | same_packages() | dict(variables or {})
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmarks.engine.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                # Ctrl-C is for the parent alone, which decides what becomes of the rows.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the process's worker: its result, or a `Failure` when it raised or died.

        Raises:
            FcnDeployError: the worker raised it.
        """
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        """Call without waiting for the answer, which has to be received before the next call."""
        # A process that died is found by receive().
        with contextlib.suppress(BrokenPipeError):
            stdin = self._process.stdin
            if stdin is not None:
                pickle.dump((method, arguments), stdin)
                stdin.flush()

    def receive(self) -> Any:
        """The answer to what was sent, or a `Failure`.

        Raises:
            FcnDeployError: the worker raised it.
        """
        answers = self._process.stdout
        if answers is None or not select.select([answers], [], [], self._limit_s)[0]:
            self.close()
            return Failure(False, f"its process gave no answer within {self._limit_s:g} s")
        try:
            answer = pickle.load(answers)  # noqa: S301 - our own process
        except (EOFError, pickle.UnpicklingError):
            return self._death()
        if isinstance(answer, FcnDeployError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _death(self) -> Failure:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return Failure(True, "its process was killed, which is how Linux ends one when memory runs out")
        ending = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return Failure(False, f"its process ended {ending}{self._last_words()}")

    def _last_words(self) -> str:
        text = self._log.read_bytes()[-_LAST_BYTES:].decode(errors="replace").strip()
        return f": {text.splitlines()[-1][:300]}" if text else ""


def same_packages() -> dict[str, str]:
    """The environment variable that lets another process find the packages that this one finds."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}


_KEPT_NODES = 12


class Contender:
    """A row that takes its turns. Whatever goes wrong in its process ends this row and no other."""

    def __init__(self, job: Job, key: RowKey, work: Work, log: Path, answer_s: float | None = None) -> None:
        self.case: Case = job.case
        self.key = key
        self._job, self._work, self._log, self._answer_s = job, work, log, answer_s
        self._process: Process | None = None
        self._status, self._problem = Status.PENDING, ""
        self._opened: Opened | None = None
        self._comparisons: tuple[LabelComparison, ...] = ()
        self._first_ns = self._next_ns = 0
        self._rounds: list[tuple[int, ...]] = []
        self._phases: dict[str, tuple[int, ...]] = {}
        self._nodes: tuple[NodeTime, ...] = ()
        self._peak_bytes = self._group = 0

    @property
    def running(self) -> bool:
        """Whether it still takes part."""
        return self._process is not None

    @property
    def skipped(self) -> bool:
        """Whether it cannot run here."""
        return self._status is Status.SKIPPED

    @property
    def last_ns(self) -> int:
        """Nanoseconds of its latest run, the very first apart; 0 before there was one."""
        return self._rounds[-1][-1] if self._rounds else self._next_ns

    def skip(self, problem: str) -> None:
        """Leave it out of the measurement, with the reason."""
        self._status, self._problem = Status.SKIPPED, problem

    def start(self, group: int) -> None:
        """Start its process and let it load the model, without waiting; it takes turns with the rows of `group`."""
        self._group = group
        # A cache of its own, empty: the first run is to show what compiling costs.
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self._log.with_suffix(".inductor"))}
        self._process = Process(self._log, cache, self._answer_s)
        self._process.send("open", self._job)

    def finish_loading(self) -> None:
        """Wait until the model is loaded."""
        self._opened = self._answer(None)

    def first_run(self) -> None:
        """Run it for the first time, and judge what it computed."""
        answer: FirstRuns | None = self._answer("first")
        if answer is None:
            return
        self._first_ns, self._next_ns = answer.first_ns, answer.next_ns
        self._comparisons = tuple(answer.comparisons)
        judged = ParityReport("PyTorch", self.case.name, self.case.tier(self._job.workspace.info), self._comparisons)
        if not judged.passed:
            self._end(Status.WRONG, "; ".join(judged.failures))

    def warm_up(self, seconds: float) -> None:
        """Run it for a while without taking samples; what the run before took counts, the very first does not."""
        self._answer("warm_up", max(0.0, seconds - self.last_ns / 1e9))

    def sample(self, seconds: float) -> None:
        """Let it take its turn."""
        answer: Samples | None = self._answer("sample", seconds)
        if answer is not None:
            self._rounds.append(tuple(answer.run_ns))
            for name, taken in answer.phases_ns.items():
                self._phases[name] = (*self._phases.get(name, ()), *taken)

    def finish(self) -> None:
        """Read its memory and its profile, and end it; its latencies are as good without them."""
        self._status = Status.MEASURED
        if self._process is not None:
            with contextlib.suppress(FcnDeployError):
                peak_bytes, nodes = self._process.call("peak_bytes"), self._process.call("profile")
                self._peak_bytes = 0 if isinstance(peak_bytes, Failure) else peak_bytes
                self._nodes = () if isinstance(nodes, Failure) else nodes[:_KEPT_NODES]
        self.close()

    def close(self) -> None:
        """End its process; what was measured stays."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def row(self) -> Row:
        """What is known so far."""
        measurement = None
        if self._rounds and self._status in (Status.MEASURED, Status.PENDING):
            measurement = Measurement(self._first_ns, tuple(self._rounds), self._phases)
        opened = self._opened or Opened("", "", {}, 0)
        return Row(
            key=self.key,
            runtime=f"{self.case.runtime} {opened.version}".strip(),
            graph=str(self.case.graph),
            precision=str(self.case.precision),
            options=opened.options,
            end_to_end=self.case.end_to_end,
            work=self._work,
            status=Status.MEASURED if measurement else self._status,
            problem=self._problem,
            load_ns=opened.load_ns,
            peak_bytes=self._peak_bytes,
            placement=opened.placement,
            parity=tuple(c.to_dict() for c in self._comparisons),
            measurement=measurement,
            nodes=self._nodes,
            group=self._group,
        )

    def _answer(self, method: str | None, *arguments: Any) -> Any:
        """What the process answers; None once it failed. Without a method: to what was sent last."""
        if self._process is None:
            return None
        try:
            answer = self._process.receive() if method is None else self._process.call(method, *arguments)
        except ParityError as error:
            self._end(Status.WRONG, error.problem)
            return None
        except FcnDeployError as error:
            answer = Failure(False, error.problem)
        if isinstance(answer, Failure):
            self._end(Status.OUT_OF_MEMORY if answer.out_of_memory else Status.FAILED, answer.message)
            return None
        return answer

    def _end(self, status: Status, problem: str) -> None:
        self._status, self._problem = status, problem
        self.close()
