"""One row while it is being measured: its process, and what is known of it so far."""

import contextlib
from pathlib import Path
from typing import Any

from benchmarks.cases import Case
from benchmarks.messages import Failure, FirstRuns, Job, Opened, Samples
from benchmarks.processes import Process
from benchmarks.profile import NodeTime
from benchmarks.results import Row, RowKey, Status
from benchmarks.roofline import Work
from benchmarks.timing import Measurement
from fcn_deploy.errors import FcnDeployError, ParityError
from fcn_deploy.parity.compare import LabelComparison
from fcn_deploy.parity.report import ParityReport

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
