"""Label maps of photos of any size with an artifact of one fixed size."""

import json
import os
import time
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fcn_deploy.choices import EngineName, OutputFormat
from fcn_deploy.errors import OutputError
from fcn_deploy.prediction import stages
from fcn_deploy.prediction.options import PredictOptions
from fcn_deploy.prediction.plan import Plan, Prediction, Task, plan_of, tasks_of
from fcn_deploy.prediction.sinks import Encoded, FileSink, Sink
from fcn_deploy.prediction.store import Store, open_store
from fcn_deploy.segmentation import Segmenter, Threads, ahead

# One batch runs while the next one waits.
_RUNS_AHEAD = 2
_MAX_THREADS = 16


def predict_locally(plan: Plan, tasks: Iterable[Task], sink: Sink, segmenter: Segmenter) -> Iterator[Prediction]:
    """Segment photos with a segmenter that is not open yet; yields in order, each once it is written.

    Raises:
        OutputError: a result cannot be written; those before it are whole.
    """
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    waiting = threads + plan.batch
    with ExitStack() as stack:
        decoders, runtime, encoders = (stack.enter_context(Threads(n)) for n in (threads, 1, threads))
        stack.enter_context(_open_in(runtime, segmenter))
        decoded = ahead(decoders, partial(stages.decode, plan, sink), tasks, waiting)
        batches = stages.collate(segmenter, decoded)
        ran = ahead(runtime, partial(stages.infer, segmenter), batches, _RUNS_AHEAD)
        encoded = ahead(encoders, lambda batch: stages.encode(sink, stages.label(segmenter, batch)), ran, threads)
        writes = _grouped((entry for batch in encoded for entry in batch), sink.rows_per_write)
        for written in ahead(encoders, partial(stages.write, sink), writes, threads):
            yield from written


@contextmanager
def _open_in(thread: Executor, segmenter: Segmenter) -> Iterator[None]:
    """Open and close the model in the thread that runs it: a GPU's context belongs to a thread."""
    thread.submit(segmenter.__enter__).result()
    try:
        yield
    finally:
        thread.submit(segmenter.__exit__, None, None, None).result()


def _grouped(entries: Iterable[Encoded | Prediction], size: int) -> Iterator[list[Encoded | Prediction]]:
    """Groups with `size` results to write; what needs no writing goes along."""
    group: list[Encoded | Prediction] = []
    for entry in entries:
        group.append(entry)
        if sum(isinstance(e, Encoded) for e in group) == size or not any(isinstance(e, Encoded) for e in group):
            yield group
            group = []
    if group:
        yield group


FAILURES_FILE = "failures.jsonl"


def predict(path: Path, images: Sequence[Path], options: PredictOptions | None = None) -> Iterator[Prediction]:
    """Segment photos and write their results; yields every distinct image once, failures included.

    Results of the same photo, model and options that are there already are left as they are. Photos that cannot be
    read are listed in `failures.jsonl` beside the results. Yields in order, but for the engine `ray`.

    Raises:
        BundleError: the artifact is missing, damaged, or has no facts about its classes.
        ProviderError: the provider asked for would not run.
        OutputError: results cannot be written, or another run is writing there.
        UsageError: the output's address, or that of the Ray cluster, cannot be opened.
    """
    options = options or PredictOptions()
    segmenter = Segmenter(path, options.provider)
    plan = plan_of(path, segmenter, options)
    store = open_store(options.output, remote=options.remote)
    with store.claim():
        sink = open_sink(plan, store)
        yield from _noting_failures(store, _run(plan, tasks_of(images), sink, segmenter))
        sink.settle()


def _run(plan: Plan, tasks: Sequence[Task], sink: Sink, segmenter: Segmenter) -> Iterator[Prediction]:
    if plan.options.engine is EngineName.RAY:
        from fcn_deploy.prediction.ray import predict_on_ray

        yield from predict_on_ray(plan, tasks, sink)
    else:
        yield from predict_locally(plan, tasks, sink, segmenter)


def open_sink(plan: Plan, store: Store) -> Sink:
    """The sink of a run.

    Raises:
        OutputError: there is a table that cannot be read.
    """
    if plan.options.output_format is OutputFormat.PARQUET:
        from fcn_deploy.prediction.sinks import TableSink

        return TableSink(plan, store)
    return FileSink(plan, store)


def _noting_failures(store: Store, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Pass predictions on; list those that failed in a file, also when the run does not come to its end."""
    lines: list[str] = []
    try:
        for prediction in predictions:
            failure = prediction.failure
            if failure is not None:
                facts = {"image": str(prediction.image), "problem": failure.problem, "remedy": failure.remedy}
                lines.append(json.dumps(facts) + "\n")
            yield prediction
    except BaseException:
        # Why it ended matters more than the list.
        with suppress(OutputError):
            _write_failures(store, lines)
        raise
    _write_failures(store, lines)


def _write_failures(store: Store, lines: Sequence[str]) -> None:
    if lines:
        store.write(FAILURES_FILE, "".join(lines).encode())
    else:
        store.remove(FAILURES_FILE)


@dataclass
class Tally:
    """Counts predictions as they pass.

    Attributes:
        segmented: photos that the model saw.
        done_before: photos whose results were there already.
        failed: photos that could not be read.
        untrained: whether the model's weights are random.
        inference_s: time the runtime took, in seconds.
        seconds: from the start to the last prediction.
    """

    segmented: int = 0
    done_before: int = 0
    failed: int = 0
    untrained: bool = False
    inference_s: float = 0.0
    seconds: float = 0.0
    _start: float = field(default_factory=time.perf_counter)

    def counting(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Pass predictions on, and count them."""
        for prediction in predictions:
            self._count(prediction)
            yield prediction

    def _count(self, prediction: Prediction) -> None:
        self.seconds = time.perf_counter() - self._start
        self.untrained |= prediction.untrained
        if prediction.failure is not None:
            self.failed += 1
        elif prediction.done_before:
            self.done_before += 1
        else:
            self.segmented += 1
        self.inference_s += (prediction.inference_ms or 0.0) / 1e3

    @property
    def images_per_s(self) -> float:
        """Photos that the model saw, per second of the whole run; 0 before the first."""
        return self.segmented / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        parts = [f"{self.segmented} photos segmented, {self.images_per_s:.3g} a second"]
        parts += [f"{self.done_before} done before"] if self.done_before else []
        total = self.segmented + self.done_before + self.failed
        parts += [f"{self.failed} of {total} photos failed"] if self.failed else []
        return "; ".join(parts)
