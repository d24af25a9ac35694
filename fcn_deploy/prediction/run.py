"""Run a prediction: the pipeline of threads, the record of failures, and the summary."""

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
from fcn_deploy.prediction.options import Decoded, Plan, Prediction, PredictOptions, Task, make_plan, make_tasks
from fcn_deploy.prediction.sinks import FileSink, Sink, TableSink
from fcn_deploy.prediction.store import Store, open_store
from fcn_deploy.segmentation import (
    Batch,
    CancellingThreadPool,
    Segmenter,
    label_batch,
    make_batches,
    map_ordered,
    run_batch,
)
from fcn_deploy.storage import parse_json

# One batch runs while the next one waits.
_RUNS_AHEAD = 2
_MAX_THREADS = 16


def predict_locally(plan: Plan, tasks: Iterable[Task], sink: Sink, segmenter: Segmenter) -> Iterator[Prediction]:
    """Segment photos with a segmenter that is not open yet; yields in order, each once it is written."""
    threads = min(os.cpu_count() or 1, _MAX_THREADS)
    waiting = threads + plan.batch
    with ExitStack() as stack:
        decoders, runtime, encoders = (stack.enter_context(CancellingThreadPool(n)) for n in (threads, 1, threads))
        stack.enter_context(_open_in(runtime, segmenter))
        decoded = map_ordered(decoders, partial(stages.decode, plan, sink), tasks, waiting)
        batches: Iterator[Batch[Decoded, Prediction]] = make_batches(segmenter, decoded)
        ran = map_ordered(runtime, partial(run_batch, segmenter), batches, _RUNS_AHEAD)
        encoded = map_ordered(encoders, lambda batch: stages.encode(sink, label_batch(segmenter, batch)), ran, threads)
        writes = stages.group_writes((entry for batch in encoded for entry in batch), sink.rows_per_write)
        for written in map_ordered(encoders, partial(stages.write, sink), writes, threads):
            yield from written


@contextmanager
def _open_in(thread: Executor, segmenter: Segmenter) -> Iterator[None]:
    """Open and close the model in the thread that runs it: a GPU's context belongs to a thread."""
    thread.submit(segmenter.__enter__).result()
    try:
        yield
    finally:
        thread.submit(segmenter.__exit__, None, None, None).result()


FAILURES_FILE = "failures.jsonl"


def predict(path: Path, images: Sequence[Path], options: PredictOptions | None = None) -> Iterator[Prediction]:
    """Segment photos and write their results; yields every distinct image once, failures included.

    Photos with existing results of the same model and options are skipped. Photos that cannot be read are listed
    in `failures.jsonl` beside the results. Yields in order, except with the Ray engine.

    Raises:
        BundleError: the artifact is missing, damaged, or does not record its classes.
        ProviderError: the requested provider would not run.
        OutputError: results cannot be written, another run is writing there, or `failures.jsonl` is the user's.
        UsageError: the output's address, or that of the Ray cluster, cannot be opened.
    """
    options = options or PredictOptions()
    segmenter = Segmenter(path, options.provider, use_cache=options.use_cache)
    plan = make_plan(path, segmenter, options)
    store = open_store(options.output)
    with store.claim():
        _check_failures_file(store, options)
        sink = (TableSink if options.output_format is OutputFormat.PARQUET else FileSink)(plan, store)
        yield from _record_failures(store, _run(plan, make_tasks(images), sink, segmenter))
        sink.remove_replaced()


def _run(plan: Plan, tasks: Sequence[Task], sink: Sink, segmenter: Segmenter) -> Iterator[Prediction]:
    if plan.options.engine is EngineName.RAY:
        from fcn_deploy.prediction.ray import predict_on_ray

        return predict_on_ray(plan, tasks, sink)
    return predict_locally(plan, tasks, sink, segmenter)


def _record_failures(store: Store, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Yield the predictions; list the failed ones in a file, even when the run ends early, but not before any photo."""
    lines: list[str] = []
    tried = False
    try:
        for prediction in predictions:
            tried = True
            failure = prediction.failure
            if failure is not None:
                facts = {"image": str(prediction.image), "problem": failure.problem, "remedy": failure.remedy}
                lines.append(json.dumps(facts) + "\n")
            yield prediction
    except BaseException:
        if tried:
            # A failure to write the list must not hide the reason for the end.
            with suppress(OutputError):
                _write_failures(store, lines)
        raise
    _write_failures(store, lines)


def _check_failures_file(store: Store, options: PredictOptions) -> None:
    """Raise OutputError if there is a list of failures that `predict` did not write."""
    lines = (store.read(FAILURES_FILE) or b"").splitlines()
    if options.force or all(map(_is_failure, lines)):
        return
    raise OutputError(
        f"{store.location(FAILURES_FILE)} exists, and predict did not write it",
        remedy="Choose another --output, or pass --force to replace it.",
    )


def _is_failure(line: bytes) -> bool:
    try:
        facts = parse_json(line)
    except ValueError:
        return False
    return isinstance(facts, dict) and facts.keys() == {"image", "problem", "remedy"}


def _write_failures(store: Store, lines: Sequence[str]) -> None:
    if lines:
        store.write(FAILURES_FILE, "".join(lines).encode())
    else:
        store.remove(FAILURES_FILE)


@dataclass
class PredictionSummary:
    """Counts of a run's predictions, and how long they took.

    Attributes:
        segmented: photos that the model labelled.
        done_before: photos whose results existed before the run.
        failed: photos that could not be read.
        untrained: whether the model's weights are random.
        inference_s: time the runtime took, seconds.
        seconds: time from the start to the last prediction.
    """

    segmented: int = 0
    done_before: int = 0
    failed: int = 0
    untrained: bool = False
    inference_s: float = 0.0
    seconds: float = 0.0
    _start: float = field(default_factory=time.perf_counter)

    def counting(self, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
        """Yield the predictions and count them."""
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
        """Photos labelled per second of the whole run; 0 before the first."""
        return self.segmented / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        parts = [f"{_photos(self.segmented)} segmented, {self.images_per_s:.3g} a second"]
        parts += [f"{self.done_before} already done"] if self.done_before else []
        total = self.segmented + self.done_before + self.failed
        parts += [f"{self.failed} of {_photos(total)} failed"] if self.failed else []
        return "; ".join(parts)


def _photos(count: int) -> str:
    return f"{count} photo{'s' if count != 1 else ''}"
