"""The process that measures one row: a runtime, its memory and its crashes are separate from those of other rows.

Run as `python -m benchmarks.engine.worker`: reads pickled (method, arguments) from stdin and writes pickled answers to
stdout. Output of libraries goes to stderr.
"""

import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import psutil

from benchmarks.engine.cases import ComputePrecision, Graph
from benchmarks.engine.processes import FirstRuns, LoadReport, RowSpec, Samples, WorkerFailure
from benchmarks.report.results import NodeTime
from benchmarks.stats import timing
from fcn_deploy.choices import ImageInput, Provider
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.model_info import INPUT_NAME, LABELS_NAME, OUTPUT_NAME, PIXELS_NAME
from fcn_deploy.parity.compare import LabelComparison, compare_labels, compare_logits
from fcn_deploy.runtime.base import Arrays

PROFILED_RUNS = 2
_PHASE_SECONDS = 0.02
_OUT_OF_MEMORY = (
    "out of memory", "failed to allocate memory", "bad_alloc", "can't allocate memory", "unable to allocate",
    "alloc_failed", "cannot allocate memory",
)  # fmt: skip


class Worker:
    """One row. The parent process calls the methods by name."""

    def __init__(self) -> None:
        self._runtime: Any = None
        self._spec: Any = None

    def run(self, function: Callable[..., Any], arguments: tuple[Any, ...], cores: tuple[int, ...]) -> Any:
        """Call any function of a module."""
        _bind_to(cores)
        return function(*arguments)

    def open(self, spec: RowSpec) -> LoadReport:
        """Load the model, without running it."""
        from benchmarks.engine.peers import load

        _bind_to(spec.cores)
        if spec.provider is Provider.TENSORRT and spec.case.precision is ComputePrecision.FP32:
            # Without this variable TensorRT rounds float32 products to TF32.
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        self._spec = spec
        start = time.perf_counter_ns()
        self._runtime = runtime = load(spec.case, spec.workspace, spec.provider, len(spec.cores) or None)
        taken = time.perf_counter_ns() - start
        return LoadReport(f"{spec.case.runtime} {runtime.version}", runtime.options, dict(runtime.placement), taken)

    def first(self) -> FirstRuns:
        """Time the first runs, and compare the outputs of the timed binding with the reference's."""
        taken, compared = [], []
        references = self._spec.workspace.references()
        # The photo comes last, because it is the input of the samples. End-to-end rows use only pictures.
        for index, given in reversed(list(enumerate(self._spec.workspace.inputs()))):
            self._runtime.bound.upload(self._feeds(index))
            taken.append(timing.time_once(self._runtime.bound.run))
            if given.pixels is not None or not self._spec.case.end_to_end:
                compared.append(self._compared(given.name, references[index]))
        return FirstRuns(taken[0], taken[-1], compared[::-1])

    def warm_up(self, seconds: float) -> int:
        """Run for a while without taking samples."""
        return timing.warm_up(self._runtime.bound.run, seconds)

    def sample(self, seconds: float) -> Samples:
        """Take the samples of one round."""
        taken = timing.sample(self._runtime.bound.run, seconds)
        case = self._spec.case
        if self._spec.provider is Provider.CPU or case.end_to_end or case.session_run:
            return Samples(taken)
        return Samples(taken, self._runtime.phases(self._feeds(0), _PHASE_SECONDS))

    def profile(self) -> tuple[NodeTime, ...]:
        """Return the time of each node in a profiled session; nothing where the runtime has no profile."""
        found: tuple[NodeTime, ...] = self._runtime.profile(PROFILED_RUNS)
        return found

    def peak_bytes(self) -> int:
        """Return the largest resident memory of this process on the host; 0 where it is unknown."""
        # psutil does not report the peak, and on Linux getrusage's peak starts at the parent's size.
        status = Path("/proc/self/status")
        if not status.exists():
            return 0
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024

    def _feeds(self, index: int) -> Arrays:
        given, workspace = self._spec.workspace.inputs()[index], self._spec.workspace
        if self._spec.case.end_to_end:
            return {PIXELS_NAME: given.pixels if given.pixels is not None else workspace.pixels()}
        bundled = self._spec.case.graph in (Graph.BUNDLE, Graph.ENGINE)
        if bundled and workspace.info.image_input is ImageInput.UINT8:
            return {PIXELS_NAME: given.pixels}
        return {INPUT_NAME: given.image}

    def _compared(self, name: str, reference: Any) -> LabelComparison:
        outputs, boundary = self._runtime.bound.download(), self._spec.workspace.info.boundary
        if LABELS_NAME in outputs:
            return compare_labels(name, reference, outputs[LABELS_NAME], boundary)
        return compare_logits(name, reference, outputs[OUTPUT_NAME], boundary)


def _bind_to(cores: tuple[int, ...]) -> None:
    """Bind this process to `cores` where the system can do that; without cores it may use all of them."""
    process = psutil.Process()
    if cores and hasattr(process, "cpu_affinity"):
        process.cpu_affinity(cores)


def serve(requests: BinaryIO, answers: BinaryIO) -> None:
    """Answer requests until their stream ends."""
    worker = Worker()
    while True:
        try:
            method, arguments = pickle.load(requests)  # noqa: S301 - written by the parent process
        except EOFError:
            return
        pickle.dump(_answer(getattr(worker, method), arguments), answers)
        answers.flush()


def _answer(method: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
    try:
        return method(*arguments)
    except FcnDeployError as error:
        return failure_of(error) if ran_out_of_memory(error) else error
    except Exception as error:  # an exception of a runtime ends its row, not the benchmark
        return failure_of(error)


def failure_of(error: Exception) -> WorkerFailure:
    """Describe an exception in one line, and tell whether memory ran out."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return WorkerFailure(ran_out_of_memory(error), (lines[0] if lines else type(error).__name__)[:300])


def ran_out_of_memory(error: Exception) -> bool:
    """Return whether an exception of any runtime means that there was too little memory."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, answers)
