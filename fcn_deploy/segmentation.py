"""An artifact that is ready to label photos of any size, and the loop from photos to labels.

Photos are fitted into the model's input, collected into batches, run, and their labels are restored to each photo's
own size. Evaluation, prediction and serving build on this module.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Generic, Self, TypeVar, cast

import numpy as np

from fcn_deploy.artifact import open_artifact
from fcn_deploy.artifact.bundle import never_known
from fcn_deploy.choices import Provider
from fcn_deploy.images import Labels, Pixels, Placement, place
from fcn_deploy.model_info import ModelInfo
from fcn_deploy.runtime.base import Arrays, feed_of, labels_of
from fcn_deploy.runtime.open import runner_for
from fcn_deploy.runtime.session_cache import default_cache


@dataclass(frozen=True)
class Fitted:
    """A photo fitted into a model's input."""

    photo: Pixels  # h x w x 3 uint8 RGB, of any size
    canvas: Pixels  # H x W x 3 uint8 RGB, of the model's size
    placement: Placement  # where the photo lies in the canvas


def fit(photo: Pixels, canvas: Pixels, *, keep_aspect: bool) -> Fitted:
    """Stretch a photo to an H x W canvas, which is overwritten, or, with `keep_aspect`, scale it to the top left."""
    return Fitted(photo, *place(photo, canvas, keep_aspect=keep_aspect))


class Segmenter:
    """Labels photos with an artifact: a context manager around its runner.

    `run` is the runtime alone. `fit`, `feed` and `labels` need no runtime, and may work in other threads meanwhile.

    Args:
        path: a bundle's directory, an ONNX file of this toolkit, or a TensorRT engine.
        provider: where ONNX Runtime runs.
        use_cache: open large models from their prepared session on a CPU, which their first run writes.

    Attributes:
        info: the model's facts.
        model_sha256: of the model's file, in hex.
        batch: N, photos per run.
        height: H of the input, pixels.
        width: W of the input, pixels.

    Raises:
        BundleError: the artifact is missing, damaged, or does not record its classes.
        ProviderError: on opening, when the requested provider would not run.
    """

    def __init__(self, path: Path, provider: Provider = Provider.CPU, *, use_cache: bool = True) -> None:
        artifact = open_artifact(path, default_cache().knows if use_cache else never_known, with_graph=False)
        self.info: ModelInfo = artifact.info
        self.model_sha256 = artifact.model_sha256
        self.batch, _, self.height, self.width = artifact.input_shape
        self._runner = runner_for(artifact, provider, use_cache=use_cache)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(self, *error: object) -> None:
        self._runner.__exit__(*error)

    @property
    def runner_name(self) -> str:
        """The runtime and its version, for reports, e.g. `ONNX Runtime 1.31.1 CPU`."""
        return self._runner.name

    def fit(self, photo: Pixels, *, keep_aspect: bool) -> Fitted:
        """Stretch a photo to the input's size or, with `keep_aspect`, pad it with the mean colour."""
        return fit(photo, self.empty_canvas(), keep_aspect=keep_aspect)

    def empty_canvas(self) -> Pixels:
        """Return H x W x 3 pixels of the mean colour."""
        return self.info.preprocessing.mean_image(self.height, self.width)

    def feed(self, canvases: list[Pixels]) -> Arrays:
        """Return the model's input for 1 to N canvases, padded to a full batch with the mean colour."""
        missing = self.batch - len(canvases)
        padding = [self.empty_canvas()] * missing if missing else []
        # One photo is not copied.
        pixels = canvases[0][None] if self.batch == 1 else np.stack([*canvases, *padding])
        return feed_of(self._runner.inputs[0], pixels, self.info.preprocessing)

    def run(self, feed: Arrays) -> Arrays:
        """Run the model on a `feed`; return its outputs, on the host."""
        return self._runner.run(feed)

    def labels(self, outputs: Arrays) -> Labels:
        """Return N x H x W uint8 labels for the outputs of `run`, those of the padding included."""
        return labels_of(outputs, self.info.boundary)

    def segment(self, photo: Pixels, *, keep_aspect: bool = False) -> Labels:
        """Return the h x w uint8 labels of one photo, in the photo's own size."""
        fitted = self.fit(photo, keep_aspect=keep_aspect)
        return fitted.placement.restore(self.labels(self.run(self.feed([fitted.canvas])))[0])


@dataclass(frozen=True)
class PendingPhoto:
    """A photo for the model; subclasses add what their callers need afterwards."""

    fitted: Fitted  # its pixels, and the model's view of them


Photo = TypeVar("Photo", bound=PendingPhoto)
Other = TypeVar("Other")


@dataclass(frozen=True)
class Batch(Generic[Photo, Other]):
    """Photos for one run of the model, in order, with entries between them that need no run."""

    entries: tuple[Photo | Other, ...]  # at most N photos, and entries that pass through as they are
    arrays: Arrays | None  # the model's input before the run, its outputs after it; None when no entry needs a run
    inference_ms: float = 0.0  # time the runtime took; 0 before the run


@dataclass(frozen=True)
class Labelled(Generic[Photo]):
    """A photo with its labels."""

    photo: Photo  # the photo
    labels: Labels  # H x W uint8, in the model's size
    inference_ms: float  # time the runtime took for its batch, divided by the photos in that batch

    def restore(self) -> Labels:
        """Return the labels as h x w uint8, in the photo's own size."""
        return self.photo.fitted.placement.restore(self.labels)


# Entries that need no run do not wait for a full batch of photos: a batch has at most this many of them.
_MAX_WITHOUT_RUN = 64


def make_batches(segmenter: Segmenter, entries: Iterable[Photo | Other]) -> Iterator[Batch[Photo, Other]]:
    """Yield batches of as many photos as the model takes at a time; the last one may have fewer."""
    chunk: list[Photo | Other] = []
    for entry in entries:
        chunk.append(entry)
        photos = sum(isinstance(e, PendingPhoto) for e in chunk)
        if photos == segmenter.batch or len(chunk) - photos == _MAX_WITHOUT_RUN:
            yield make_batch(segmenter, chunk)
            chunk = []
    if chunk:
        yield make_batch(segmenter, chunk)


def make_batch(segmenter: Segmenter, entries: Sequence[Photo | Other]) -> Batch[Photo, Other]:
    """Return one batch; at most N of the entries are photos."""
    canvases = [entry.fitted.canvas for entry in entries if isinstance(entry, PendingPhoto)]
    return Batch(tuple(entries), segmenter.feed(canvases) if canvases else None)


def run_batch(segmenter: Segmenter, batch: Batch[Photo, Other]) -> Batch[Photo, Other]:
    """Run the model on a batch; measures the runtime's time only."""
    if batch.arrays is None:
        return batch
    start = time.perf_counter_ns()
    outputs = segmenter.run(batch.arrays)
    return replace(batch, arrays=outputs, inference_ms=(time.perf_counter_ns() - start) / 1e6)


def label_batch(segmenter: Segmenter, batch: Batch[Photo, Other]) -> list[Labelled[Photo] | Other]:
    """Return each photo of a batch that has run with its labels, and the other entries as they are."""
    labels = iter(segmenter.labels(batch.arrays) if batch.arrays is not None else ())
    share = batch.inference_ms / max(sum(isinstance(entry, PendingPhoto) for entry in batch.entries), 1)
    return [
        Labelled(cast("Photo", entry), next(labels), share) if isinstance(entry, PendingPhoto) else entry
        for entry in batch.entries
    ]


Item = TypeVar("Item")
Result = TypeVar("Result")


class CancellingThreadPool(ThreadPoolExecutor):
    """A pool of threads; when its block ends, also by an error, work that has not begun is dropped."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def map_ordered(
    pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], limit: int
) -> Iterator[Result]:
    """Map in order, working at most `limit` items ahead of the reader; raises what `function` raises."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        while pending and (len(pending) >= limit or pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
