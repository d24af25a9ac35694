"""What all stages of a run know, and the key by which finished work is recognised."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fcn_deploy.errors import FcnDeployError
from fcn_deploy.images import LABELS_SUFFIX, OVERLAY_SUFFIX, Labels
from fcn_deploy.model_info import ModelInfo
from fcn_deploy.prediction.options import PredictOptions
from fcn_deploy.segmentation import Fitted, Segmenter


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


# Raised when results of the same photo, model and options come to look different.
_RESULTS_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """A run, as every stage of it has to know it; travels between processes.

    Attributes:
        folder: where relative paths begin, for workers that run elsewhere.
        artifact: what segments.
        options: how.
        info: the model's facts.
        model_sha256: of the model's file.
        batch: N, photos per run of the model.
        height: H of its input.
        width: W of its input.
    """

    folder: Path
    artifact: Path
    options: PredictOptions
    info: ModelInfo
    model_sha256: str
    batch: int
    height: int
    width: int

    def key(self, photo: bytes) -> str:
        """SHA-256 of all that a photo's results depend on, in hex, from the content of its file."""
        content = hashlib.sha256(photo).hexdigest()
        aspect = "padded" if self.options.keep_aspect else "stretched"
        facts = (str(_RESULTS_VERSION), content, self.model_sha256, aspect, self.options.output_format)
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()


def plan_of(artifact: Path, segmenter: Segmenter, options: PredictOptions) -> Plan:
    """The plan of segmenting with an artifact."""
    s = segmenter
    return Plan(Path.cwd(), artifact, options, s.info, s.model_sha256, s.batch, s.height, s.width)


def tasks_of(images: Sequence[Path]) -> list[Task]:
    """A task per distinct image, named by its stem, or `stem-2`, `stem-3`, ... where several share it.

    File systems that ignore case are taken into account.
    """
    distinct = list(dict.fromkeys(images))
    stems = Counter(image.stem.casefold() for image in distinct)
    # The numbers given so far, by stem: a million photos of one name would else be tried a million times each.
    numbers = {stem: count(2) for stem in stems}
    taken: set[str] = set()
    return [Task(image, _free_name(image.stem, stems, numbers, taken)) for image in distinct]


def _free_name(stem: str, stems: Counter[str], numbers: "dict[str, count[int]]", taken: set[str]) -> str:
    own = stem.casefold()
    name = stem
    while name.casefold() in taken or (name.casefold() != own and name.casefold() in stems):
        name = f"{stem}-{next(numbers[own])}"
    taken.add(name.casefold())
    return name
