"""What travels between the stages: a photo to do, decoded, segmented, done."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.errors import FcnDeployError
from fcn_deploy.images import Labels
from fcn_deploy.photos import LABELS_SUFFIX, OVERLAY_SUFFIX
from fcn_deploy.segmentation import Fitted


@dataclass(frozen=True)
class Task:
    """A photo to segment.

    Attributes:
        image: the photo's file.
        name: what its results are called, without a suffix.
    """

    image: Path
    name: str


@dataclass(frozen=True)
class Decoded:
    """A photo, ready for the model.

    Attributes:
        task: which photo.
        key: what its results depend on, hashed: content, model and options.
        fitted: its pixels, and the model's view of them.
    """

    task: Task
    key: str
    fitted: Fitted


@dataclass(frozen=True)
class Segmented:
    """What the model says of a photo.

    Attributes:
        decoded: the photo.
        labels: H x W uint8, in the model's size.
        inference_ms: time the runtime took for its batch, over the photos in that.
    """

    decoded: Decoded
    labels: Labels
    inference_ms: float


@dataclass(frozen=True)
class Prediction:
    """One segmented photo, or the reason it was not.

    Attributes:
        image: the photo.
        files: where its results are: paths or addresses; empty after a failure.
        shares: each class found with its share of the pixels, largest first; empty when it was done before.
        failure: what went wrong, or None.
        untrained: whether the model's weights are random, so that the labels mean nothing.
        done_before: whether results of the same photo, model and options were there already.
        inference_ms: time the runtime took for its batch, over the photos in that; None when it did not run.
    """

    image: Path
    files: tuple[str, ...] = ()
    shares: tuple[tuple[str, float], ...] = ()
    failure: FcnDeployError | None = None
    untrained: bool = False
    done_before: bool = False
    inference_ms: float | None = None

    @property
    def labels_path(self) -> Path | None:
        """The palette PNG of the labels, in the photo's size; None in another format or after a failure."""
        return self._file(LABELS_SUFFIX)

    @property
    def overlay_path(self) -> Path | None:
        """The labels over the photo, with a legend; None in another format or after a failure."""
        return self._file(OVERLAY_SUFFIX)

    def to_dict(self) -> dict[str, Any]:
        """Every fact, for JSON."""
        return {
            "image": str(self.image),
            "files": list(self.files),
            "classes": dict(self.shares),
            "untrained": self.untrained,
            "done_before": self.done_before,
            "inference_ms": self.inference_ms,
            "failure": str(self.failure) if self.failure else None,
        }

    def _file(self, suffix: str) -> Path | None:
        return next((Path(file) for file in self.files if file.endswith(suffix)), None)
