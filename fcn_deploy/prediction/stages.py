"""The stages of a run, each a function of its input: decode, collate, infer, label, finish."""

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from fcn_deploy.errors import ImageError
from fcn_deploy.images import decode_image
from fcn_deploy.prediction.plan import Decoded, Plan, Prediction, Segmented, Task
from fcn_deploy.prediction.sinks import Encoded, Sink
from fcn_deploy.runtime.base import Arrays
from fcn_deploy.segmentation import Segmenter, fit

# Photos that need no run (done before, unreadable) go along with those that do; so many of them do not wait for more.
_LONGEST_CHUNK = 64


@dataclass(frozen=True)
class Batch:
    """Photos of one run of the model, in order, with those between them that need none.

    Attributes:
        entries: photos, or what is known of them already.
        feed: the model's input; None where no entry needs a run.
    """

    entries: tuple[Decoded | Prediction, ...]
    feed: Arrays | None


@dataclass(frozen=True)
class Ran:
    """What the model gave for a batch.

    Attributes:
        batch: the batch.
        outputs: the model's outputs; None where it did not run.
        inference_ms: time the runtime took.
    """

    batch: Batch
    outputs: Arrays | None
    inference_ms: float


def decode(plan: Plan, sink: Sink, task: Task) -> Decoded | Prediction:
    """Read and fit a photo; or what is there already; or why it cannot be read."""
    try:
        try:
            data = (plan.folder / task.image).read_bytes()
        except OSError as error:
            raise _unreadable(plan, task, error) from error
        key = plan.key(data)
        finished = sink.finished(task, key)
        if finished is not None:
            return finished
        photo = decode_image(data, str(task.image))
    except ImageError as error:
        return Prediction(task.image, failure=error, untrained=plan.info.provenance.untrained)
    return Decoded(task, key, fit(photo, plan.height, plan.width, keep_aspect=plan.options.keep_aspect))


def _unreadable(plan: Plan, task: Task, error: OSError) -> ImageError:
    if not (plan.folder / task.image).is_file():
        return ImageError(f"image {task.image} is not a file", remedy="Check the path.")
    return ImageError(f"image {task.image} cannot be read: {error.strerror}", remedy="Check its permissions.")


def collate(segmenter: Segmenter, entries: Iterable[Decoded | Prediction]) -> Iterator[Batch]:
    """Batches of as many photos as the model takes at a time, the last one of what is left."""
    chunk: list[Decoded | Prediction] = []
    for entry in entries:
        chunk.append(entry)
        if sum(isinstance(e, Decoded) for e in chunk) == segmenter.batch or len(chunk) >= _LONGEST_CHUNK:
            yield batch_of(segmenter, chunk)
            chunk = []
    if chunk:
        yield batch_of(segmenter, chunk)


def batch_of(segmenter: Segmenter, entries: Sequence[Decoded | Prediction]) -> Batch:
    """One batch; at most N of the entries are photos."""
    canvases = [entry.fitted.canvas for entry in entries if isinstance(entry, Decoded)]
    return Batch(tuple(entries), segmenter.feed(canvases) if canvases else None)


def infer(segmenter: Segmenter, batch: Batch) -> Ran:
    """Run the model: the runtime's work alone."""
    if batch.feed is None:
        return Ran(batch, None, 0.0)
    start = time.perf_counter_ns()
    outputs = segmenter.run(batch.feed)
    return Ran(batch, outputs, (time.perf_counter_ns() - start) / 1e6)


def label(segmenter: Segmenter, ran: Ran) -> list[Segmented | Prediction]:
    """Each photo of a batch with its labels, and the other entries as they are."""
    if ran.outputs is None:
        return [entry for entry in ran.batch.entries if isinstance(entry, Prediction)]
    photos = sum(isinstance(entry, Decoded) for entry in ran.batch.entries)
    labels = iter(segmenter.labels(ran.outputs))
    return [
        Segmented(entry, next(labels), ran.inference_ms / photos) if isinstance(entry, Decoded) else entry
        for entry in ran.batch.entries
    ]


def encode(sink: Sink, entries: Sequence[Segmented | Prediction]) -> list[Encoded | Prediction]:
    """Every photo's result, in order; what is known already stays as it is."""
    return [sink.encode(entry) if isinstance(entry, Segmented) else entry for entry in entries]


def write(sink: Sink, entries: Sequence[Encoded | Prediction]) -> list[Prediction]:
    """Write the results among `entries`; all in order.

    Raises:
        OutputError: they cannot be written.
    """
    results = [entry for entry in entries if isinstance(entry, Encoded)]
    written = iter(sink.write(results) if results else ())
    return [next(written) if isinstance(entry, Encoded) else entry for entry in entries]
