"""The process that one row is measured in: a runtime of its own, its memory, and its crashes.

Run as `python -m benchmarks.engine.worker`: reads pickled (method, arguments) from stdin, writes pickled
answers to stdout. What libraries print goes to stderr.
"""

import os
import pickle
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from benchmarks.engine.cases import Graph, Precision
from benchmarks.engine.processes import Failure, FirstRuns, Job, Opened, Samples
from benchmarks.engine.workspace import Workspace
from benchmarks.stats import timing
from benchmarks.stats.nodes import NodeTime
from fcn_deploy.choices import ImageInput, Provider
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.model_info import INPUT_NAME, LABELS_NAME, OUTPUT_NAME, PIXELS_NAME
from fcn_deploy.parity.compare import LabelComparison, compare_labels, compare_logits
from fcn_deploy.runtime.base import Arrays
from fcn_deploy.runtime.ort_options import OrtOptions

if TYPE_CHECKING:
    from benchmarks.gpu.plan import Entry, Exports
    from benchmarks.stats.nodes import NodeTimes


PROFILED_RUNS = 2
_PHASE_SECONDS = 0.02
_OUT_OF_MEMORY = (
    "out of memory", "failed to allocate memory", "bad_alloc", "can't allocate memory", "unable to allocate",
    "alloc_failed", "cannot allocate memory",
)  # fmt: skip


class Worker:
    """One row. The methods are called from the parent process by name."""

    def __init__(self) -> None:
        self._subject: Any = None
        self._job: Any = None

    def open(self, job: Job) -> Opened:
        """Load the model; nothing is run yet."""
        from benchmarks.engine.peers.base import open_subject

        _stay_on(job.cores)
        if job.provider is Provider.TENSORRT and job.case.precision is Precision.FP32:
            # TensorRT rounds float32 products to TF32 unless NVIDIA's libraries are told otherwise.
            os.environ["NVIDIA_TF32_OVERRIDE"] = "0"
        self._job = job
        start = time.perf_counter_ns()
        self._subject = open_subject(job.case, job.workspace, job.provider, len(job.cores) or None)
        taken = time.perf_counter_ns() - start
        return Opened(self._subject.version, self._subject.options, self._subject.placement, taken)

    def first(self) -> FirstRuns:
        """Time the very first run and the next, and compare what this very binding computes with the reference."""
        taken, compared = [], []
        references = self._job.workspace.references()
        # The photo comes last, because it is what the samples are taken on; end to end there are only pictures.
        for index, given in reversed(list(enumerate(self._job.workspace.inputs()))):
            self._subject.bound.upload(self._feeds(index))
            taken.append(timing.time_once(self._subject.bound.run))
            if given.pixels is not None or not self._job.case.end_to_end:
                compared.append(self._compared(given.name, references[index]))
        return FirstRuns(taken[0], taken[-1], compared[::-1])

    def warm_up(self, seconds: float) -> int:
        """Run for a while without taking samples."""
        return timing.warm_up(self._subject.bound.run, seconds)

    def sample(self, seconds: float) -> Samples:
        """One round of samples."""
        taken = timing.sample(self._subject.bound.run, seconds)
        case = self._job.case
        if self._job.provider is Provider.CPU or case.end_to_end or case.session_run:
            return Samples(taken)
        return Samples(taken, self._subject.phases(self._feeds(0), _PHASE_SECONDS))

    def profile(self) -> tuple[NodeTime, ...]:
        """Times per node of a profiled session; empty where the runtime has none to read."""
        found: tuple[NodeTime, ...] = self._subject.profile(PROFILED_RUNS)
        return found

    def peak_bytes(self) -> int:
        """The most memory this process ever had resident on the host; 0 where that is unknown."""
        status = Path("/proc/self/status")
        if not status.exists():
            return 0
        lines = dict(line.split(":", 1) for line in status.read_text(encoding="ascii").splitlines() if ":" in line)
        return int(lines["VmHWM"].split()[0]) * 1024

    def prepare(self, workspace: Workspace, graphs: frozenset[Graph], cores: tuple[int, ...]) -> None:
        """Make what the rows of a bundle share."""
        from benchmarks.engine.workspace import prepare

        _stay_on(cores)
        prepare(workspace, graphs)

    def ceilings(
        self, provider: Provider, precisions: tuple[Precision, ...], cores: tuple[int, ...], seconds: float
    ) -> Any:
        """What the device can do at best."""
        from benchmarks.engine.ceilings import measure_ceilings

        _stay_on(cores)
        return measure_ceilings(provider, precisions, len(cores) or None, seconds)

    def node_times(self, path: Path, options: OrtOptions, seconds: float, limit_s: float) -> "NodeTimes":
        """Times of a model's nodes, each run alone."""
        from benchmarks.stats.nodes import time_nodes

        return time_nodes(path, options, seconds, limit_s)

    def make_bundle(self, entry: "Entry", exports: "Exports", cores: tuple[int, ...]) -> Workspace:
        """Export a bundle, and make what its rows share."""
        import torch

        from benchmarks.gpu.plan import make

        _stay_on(cores)
        torch.set_num_threads(len(cores))
        return make(entry, exports)

    def _feeds(self, index: int) -> Arrays:
        given = self._job.workspace.inputs()[index]
        if self._job.case.end_to_end:
            return {PIXELS_NAME: given.pixels if given.pixels is not None else self._job.workspace.pixels()}
        if self._takes_pixels():
            return {PIXELS_NAME: given.pixels}
        return {INPUT_NAME: given.image}

    def _takes_pixels(self) -> bool:
        bundled = self._job.case.graph in (Graph.BUNDLE, Graph.ENGINE)
        return bundled and self._job.workspace.info.image_input is ImageInput.UINT8

    def _compared(self, name: str, reference: Any) -> LabelComparison:
        outputs = self._subject.bound.download()
        if LABELS_NAME in outputs:
            return compare_labels(name, reference, outputs[LABELS_NAME])
        return compare_logits(name, reference, outputs[OUTPUT_NAME])


def _stay_on(cores: tuple[int, ...]) -> None:
    """Bind this process to `cores`, where the system knows such a thing; to none in particular when there are none."""
    if cores and sys.platform == "linux":
        os.sched_setaffinity(0, cores)


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
    except Exception as error:  # whatever a runtime raises ends its row, not the benchmark
        return failure_of(error)


def failure_of(error: Exception) -> Failure:
    """A runtime's exception in one line, with the memory it ran out of recognised."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return Failure(ran_out_of_memory(error), (lines[0] if lines else type(error).__name__)[:300])


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an exception says, in whatever words its runtime has, that there was too little memory."""
    return isinstance(error, MemoryError) or any(sign in str(error).lower() for sign in _OUT_OF_MEMORY)


if __name__ == "__main__":
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "wb")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    serve(sys.stdin.buffer, answers)
