"""The stages in threads of this process: photos are decoded and results encoded while the runtime works.

Every stage is at most so many items ahead of the next, so that memory does not depend on the number of photos. The
runtime has a thread of its own and always finds the next batch waiting: decoding, hashing, resizing, compressing and
writing release Python's lock, as the runtime does.
"""

import os
from collections.abc import Iterable, Iterator
from concurrent.futures import Executor
from contextlib import ExitStack, contextmanager
from functools import partial

from fcn_deploy.pipelining import Threads, ahead
from fcn_deploy.prediction import stages
from fcn_deploy.prediction.plan import Plan
from fcn_deploy.prediction.sinks import Encoded, Sink
from fcn_deploy.prediction.work import Prediction, Task
from fcn_deploy.segmentation import Segmenter

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
