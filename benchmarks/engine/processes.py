"""One row while it is measured: its worker process, the messages between the two, and the row's state."""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self, TypeVar, cast

from benchmarks.engine.cases import Case, ComputePrecision
from benchmarks.engine.environment import HUGE_PAGES
from benchmarks.engine.workspace import Workspace
from benchmarks.report.results import Row, RowKey, RowStatus, WorkEstimate
from benchmarks.stats.timing import Measurement
from fcn_deploy.choices import Geometry, Head, ImageInput, Provider
from fcn_deploy.errors import FcnDeployError, ParityError
from fcn_deploy.model_info import VOC_CLASSES, ModelInfo, NetworkSpec
from fcn_deploy.parity.compare import LabelComparison
from fcn_deploy.parity.report import ParityReport

T = TypeVar("T")


@dataclass(frozen=True)
class RowSpec:
    """What the process of one row measures, and on which cores; an empty list allows all cores."""

    case: Case
    workspace: Workspace
    provider: Provider
    cores: tuple[int, ...]


@dataclass(frozen=True)
class LoadReport:
    """The worker's answer when its model is loaded: fields of the row."""

    runtime: str
    options: str
    placement: dict[str, int]
    load_ns: int


@dataclass(frozen=True)
class FirstRuns:
    """The worker's answer to the first runs: nanoseconds of the first and of the last, and the parity of each input."""

    first_ns: int
    next_ns: int
    comparisons: list[LabelComparison]


@dataclass(frozen=True)
class Samples:
    """The worker's answer to one round: nanoseconds of each run, and of each phase that was timed separately."""

    run_ns: list[int]
    phases_ns: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class WorkerFailure:
    """The reason why a worker did not answer."""

    out_of_memory: bool  # whether there was too little memory
    message: str  # the runtime's message, in one line


_KEPT_NODES = 12
_LAST_BYTES = 4000


class RowProcess:
    """A row and its process. A failure of the process ends only this row.

    Args:
        spec: what is measured.
        work: the least work of one run.
        log: file for the process's output.
        limit_s: seconds after which the row fails when its process has not answered; None waits for ever.

    Attributes:
        row: the results so far.
    """

    def __init__(self, spec: RowSpec, work: WorkEstimate, log: Path, limit_s: float | None = None) -> None:
        case, info = spec.case, spec.workspace.info
        self.row = Row(
            RowKey(network_name(info), spec.workspace.shape, case.name, str(spec.provider)),
            str(case.runtime), str(case.graph), str(case.precision), "", case.end_to_end, work,
        )  # fmt: skip
        self._spec, self._log, self._limit_s = spec, log, limit_s
        self._process: WorkerProcess | None = None
        self._first_ns = self._next_ns = 0

    @property
    def running(self) -> bool:
        """Whether it is still being measured."""
        return self._process is not None

    @property
    def last_ns(self) -> int:
        """Nanoseconds of its latest run, except for the very first; 0 before there was one."""
        measured = self.row.measurement
        return measured.rounds_ns[-1][-1] if measured else self._next_ns

    def skip(self, problem: str) -> None:
        """Exclude it from the measurement, with the reason."""
        self._update(status=RowStatus.SKIPPED, problem=problem)

    def start(self, first_turn: int) -> None:
        """Start its process and begin to load the model, without waiting; `first_turn` is its first turn's number."""
        self._update(first_turn=first_turn)
        # Its own empty cache, so that the first run includes compilation.
        cache = {"TORCHINDUCTOR_CACHE_DIR": str(self._log.with_suffix(".inductor"))}
        self._process = WorkerProcess(self._log, cache, self._limit_s)
        self._process.send("open", self._spec)

    def finish_loading(self) -> None:
        """Wait until the model is loaded."""
        loaded: LoadReport | None = self._answer(None)
        if loaded is not None:
            self._update(**vars(loaded))

    def first_run(self) -> None:
        """Run it for the first time, and compare its outputs with the reference's."""
        answer: FirstRuns | None = self._answer("first")
        if answer is None:
            return
        self._first_ns, self._next_ns = answer.first_ns, answer.next_ns
        self._update(parity=tuple(c.to_dict() for c in answer.comparisons))
        tier = self._spec.case.tier(self._spec.workspace.info)
        parity = ParityReport("PyTorch", self._spec.case.name, tier, tuple(answer.comparisons))
        if parity.passed:
            return
        if self._spec.case.is_peer:
            self._update(problem=f"beyond {tier.name}: {'; '.join(parity.failures)}")
        else:
            self._end(RowStatus.WRONG, "; ".join(parity.failures))

    def warm_up(self, seconds: float) -> None:
        """Run it for a while without taking samples; record the latest run, but not the very first."""
        self._answer("warm_up", max(0.0, seconds - self.last_ns / 1e9))

    def sample(self, seconds: float) -> None:
        """Take the samples of one round."""
        answer: Samples | None = self._answer("sample", seconds)
        if answer is None:
            return
        before = self.row.measurement or Measurement(self._first_ns, ())
        rounds = (*before.rounds_ns, tuple(answer.run_ns))
        phases = {name: (*before.phases_ns.get(name, ()), *taken) for name, taken in answer.phases_ns.items()}
        measured = Measurement(self._first_ns, rounds, {**before.phases_ns, **phases})
        self._update(status=RowStatus.MEASURED, measurement=measured)

    def finish(self) -> None:
        """Read its memory and its profile, and end its process; its latencies are valid without them."""
        if self._process is not None:
            with contextlib.suppress(FcnDeployError):
                peak_bytes, nodes = self._process.call("peak_bytes"), self._process.call("profile")
                self._update(
                    peak_bytes=0 if isinstance(peak_bytes, WorkerFailure) else peak_bytes,
                    nodes=() if isinstance(nodes, WorkerFailure) else nodes[:_KEPT_NODES],
                )
        self.close()

    def close(self) -> None:
        """End its process; its results are kept."""
        if self._process is not None:
            self._process.close()
            self._process = None

    def _answer(self, method: str | None, *arguments: Any) -> Any:
        """Return the process's answer to a call (without a method, to the latest one); None once it failed."""
        if self._process is None:
            return None
        try:
            answer = self._process.receive() if method is None else self._process.call(method, *arguments)
        except ParityError as error:
            self._end(RowStatus.WRONG, error.problem)
            return None
        except FcnDeployError as error:
            answer = WorkerFailure(False, error.problem)
        if isinstance(answer, WorkerFailure):
            self._end(RowStatus.OUT_OF_MEMORY if answer.out_of_memory else RowStatus.FAILED, answer.message)
            return None
        return answer

    def _end(self, status: RowStatus, problem: str) -> None:
        self._update(status=status, problem=problem, measurement=None)
        self.close()

    def _update(self, **changes: Any) -> None:
        self.row = replace(self.row, **changes)


def network_name(info: ModelInfo) -> str:
    """Name a network in a report, e.g. `FCN-8s int8`, `FCN-8s pixels to labels` or `FCN-8s caffe / 16`."""
    network, precision = info.network, ComputePrecision(info.precision)
    caffe = narrow = ""
    if isinstance(network, NetworkSpec):
        caffe = " caffe" if network.geometry is Geometry.CAFFE else ""
        narrow = f" / {network.channel_divisor}" if network.channel_divisor > 1 else ""
    classes = f", {network.num_classes} classes" if network.num_classes != len(VOC_CLASSES) else ""
    reduced = "" if precision is ComputePrecision.FP32 else f" {precision}"
    pixels_and_labels = info.image_input is ImageInput.UINT8, info.head is Head.LABELS
    heads = {(True, True): " pixels to labels", (True, False): " from pixels", (False, True): " to labels"}
    return f"{network.name}{caffe}{narrow}{classes}{reduced}{heads.get(pixels_and_labels, '')}"


class WorkerProcess:
    """A process of `benchmarks.engine.worker`, started at once; a context manager that ends it.

    Args:
        log: file for its output.
        variables: environment variables besides those of this process.
        limit_s: seconds after which it is ended when it has not answered; None waits for ever.
    """

    def __init__(self, log: Path, variables: Mapping[str, str] | None = None, limit_s: float | None = None) -> None:
        self._log, self._limit_s = log, limit_s
        environment = HUGE_PAGES | os.environ | same_packages() | dict(variables or {})
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                # -P: packages in the working directory are not imported.
                [sys.executable, "-P", "-m", "benchmarks.engine.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                # Ctrl-C reaches only the parent, which handles the rows.
                start_new_session=True,
            )

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def run(self, function: Callable[..., T], *arguments: Any, cores: tuple[int, ...] = ()) -> T | WorkerFailure:
        """Call a module's function in the process, bound to `cores` if there are any; see `call`."""
        return cast("T | WorkerFailure", self.call("run", function, arguments, cores))

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the process's worker; return its result, or a `WorkerFailure` when it raised or died.

        Raises:
            FcnDeployError: the worker raised it.
        """
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        """Call without waiting for the answer, which has to be received before the next call."""
        # receive() notices a process that died.
        with contextlib.suppress(BrokenPipeError):
            stdin = self._process.stdin
            if stdin is not None:
                pickle.dump((method, arguments), stdin)
                stdin.flush()

    def receive(self) -> Any:
        """Return the answer to the latest call, or a `WorkerFailure`.

        Raises:
            FcnDeployError: the worker raised it.
        """
        answers = self._process.stdout
        if answers is None or not select.select([answers], [], [], self._limit_s)[0]:
            self.close()
            return WorkerFailure(False, f"its process gave no answer within {self._limit_s:g} s")
        try:
            answer = pickle.load(answers)  # noqa: S301 - our own process
        except (EOFError, pickle.UnpicklingError):
            return self._death()
        if isinstance(answer, FcnDeployError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process immediately."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _death(self) -> WorkerFailure:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return WorkerFailure(True, "its process was killed, as Linux does when memory runs out")
        ending = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        lines = self._log.read_bytes()[-_LAST_BYTES:].decode(errors="replace").strip().splitlines()
        return WorkerFailure(False, f"its process ended {ending}{f': {lines[-1][:300]}' if lines else ''}")


def same_packages() -> dict[str, str]:
    """Return the environment variable with which another process finds the packages of this one."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
