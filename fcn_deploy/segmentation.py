"""An artifact that is ready to label photos of any size: what every command that shows it photos has in common."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self, TypeVar

import numpy as np

from fcn_deploy.artifact import open_artifact
from fcn_deploy.choices import Provider
from fcn_deploy.images import Labels, Pixels, Placement, mean_image, place
from fcn_deploy.model_info import ModelInfo
from fcn_deploy.runtime.base import Arrays, feed_of, labels_of
from fcn_deploy.runtime.open import runner_for


@dataclass(frozen=True)
class Fitted:
    """A photo fitted into a model's input.

    Attributes:
        photo: h x w x 3 uint8 RGB, of any size.
        canvas: H x W x 3 uint8 RGB, of the model's size.
        placement: where the photo lies in the canvas.
    """

    photo: Pixels
    canvas: Pixels
    placement: Placement


def fit(photo: Pixels, height: int, width: int, *, keep_aspect: bool) -> Fitted:
    """Stretch a photo to H x W or, with `keep_aspect`, scale it to the top left and pad it with the mean colour."""
    return Fitted(photo, *place(photo, height, width, keep_aspect=keep_aspect))


class Segmenter:
    """Labels photos with an artifact: a context manager around its runner.

    `run` is the runtime alone; what happens before it (`fit`, `feed`) and after it (`labels`) may happen elsewhere
    at the same time.

    Args:
        path: a bundle's directory, an ONNX file of this toolkit, or a TensorRT engine.
        provider: where ONNX Runtime runs.

    Attributes:
        info: the model's facts.
        model_path: the model's file.
        model_sha256: of that file, in hex.
        batch: N, photos per run.
        height: H of the input, pixels.
        width: W of the input, pixels.

    Raises:
        BundleError: the artifact is missing, damaged, or has no facts about its classes.
        ProviderError: on opening, when the provider asked for would not run.
    """

    def __init__(self, path: Path, provider: Provider = Provider.CPU) -> None:
        artifact = open_artifact(path)
        self.info: ModelInfo = artifact.info
        self.model_path, self.model_sha256 = artifact.model_path, artifact.model_sha256
        self.batch, _, self.height, self.width = artifact.input_shape
        self._runner = runner_for(artifact, provider)

    def __enter__(self) -> Self:
        self._runner.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._runner.__exit__(kind, error, trace)

    @property
    def runner_name(self) -> str:
        """What runs, for reports, e.g. `ONNX Runtime 1.31.1 CPU`."""
        return self._runner.name

    def fit(self, photo: Pixels, *, keep_aspect: bool) -> Fitted:
        """Stretch a photo to the input's size or, with `keep_aspect`, pad it with the mean colour."""
        return fit(photo, self.height, self.width, keep_aspect=keep_aspect)

    def feed(self, canvases: list[Pixels]) -> Arrays:
        """What `run` takes for 1 to N canvases: the model's input, filled up with the mean colour."""
        missing = self.batch - len(canvases)
        filling = [mean_image(self.height, self.width)] * missing if missing else []
        # One photo is not copied.
        pixels = canvases[0][None] if self.batch == 1 else np.stack([*canvases, *filling])
        return feed_of(self._runner.inputs[0], pixels)

    def run(self, feed: Arrays) -> Arrays:
        """The model's outputs for a `feed`, on the host."""
        return self._runner.run(feed)

    def labels(self, outputs: Arrays) -> Labels:
        """N x H x W uint8 labels of what `run` gave, those of the filling included."""
        return labels_of(outputs)

    def segment(self, photo: Pixels, *, keep_aspect: bool = False) -> Labels:
        """H x w uint8 labels of one photo, in the photo's own size."""
        fitted = self.fit(photo, keep_aspect=keep_aspect)
        return fitted.placement.restore(self.labels(self.run(self.feed([fitted.canvas])))[0])


Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads(ThreadPoolExecutor):
    """Threads that drop what has not begun when the block ends, be it by an error."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], limit: int) -> Iterator[Result]:
    """`map` in order, at most `limit` items ahead of whoever reads the results; raises what `function` raises."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        while pending and (len(pending) >= limit or pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
