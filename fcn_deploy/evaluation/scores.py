"""The outcome of an evaluation: raw pixel counts, and every score derived from them."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import msgspec
import numpy as np

from fcn_deploy.errors import InputFileError
from fcn_deploy.evaluation.data import Failure, list_first
from fcn_deploy.images import MAX_PIXELS
from fcn_deploy.metrics import Counts, Scores
from fcn_deploy.model_info import ModelInfo
from fcn_deploy.storage import parse_json


class Confusions(msgspec.Struct, frozen=True, omit_defaults=True):
    """Pixel counts of one image or of many, each K x K."""

    artifact: Counts  # rows the truth, columns the artifact's labels
    pytorch: Counts | None = None  # rows the truth, columns PyTorch's labels; None without PyTorch
    # rows PyTorch's labels, columns the artifact's, of all pixels including void; None without PyTorch
    both: Counts | None = None

    def __add__(self, other: "Confusions") -> "Confusions":
        if self.pytorch is None or self.both is None or other.pytorch is None or other.both is None:
            return Confusions(self.artifact + other.artifact)
        return Confusions(self.artifact + other.artifact, self.pytorch + other.pytorch, self.both + other.both)

    @classmethod
    def none(cls, num_classes: int, *, pytorch: bool) -> "Confusions":
        """Return counts of zero."""
        zeros = np.zeros((num_classes, num_classes), dtype=np.int64)
        return cls(zeros, zeros, zeros) if pytorch else cls(zeros)


class ImageRecord(msgspec.Struct, frozen=True):
    """One scored image; a line of the journal."""

    name: str  # name of its pair
    photo_sha256: str  # hash of the photo's file
    labels_sha256: str  # hash of the label map's file
    pixels: int  # number of the photo's pixels, including void
    counts: Confusions  # its pixel counts

    def to_json(self) -> bytes:
        """Return one line of JSON: the non-zero cells of each matrix, as pairs of position and count."""
        return json.dumps(msgspec.to_builtins(self, enc_hook=_sparse)).encode() + b"\n"

    @classmethod
    def from_json(cls, line: bytes, num_classes: int) -> Self:
        """Read a line that `to_json` wrote; raises ValueError for any other line."""
        if not line.endswith(b"\n"):
            raise ValueError("incomplete line")
        return msgspec.convert(parse_json(line), cls, dec_hook=lambda _type, cells: _dense(cells, num_classes))


def _sparse(counts: Counts) -> list[tuple[int, int]]:
    flat = counts.ravel()
    return [(int(cell), int(flat[cell])) for cell in np.flatnonzero(flat)]


def _dense(cells: object, num_classes: int) -> Counts:
    flat = np.zeros(num_classes**2, dtype=np.int64)
    for cell, count in msgspec.convert(cells, list[tuple[int, int]]):
        if not (0 <= cell < flat.size and 0 <= count <= MAX_PIXELS):
            raise ValueError(f"{count} pixels in cell {cell} of {flat.size}")
        flat[cell] = count
    return flat.reshape(num_classes, num_classes)


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class; each is 0..1, NaN where it is undefined, None without PyTorch."""

    name: str  # name of the class
    iu: float  # intersection over union; NaN for a class neither in the truth nor among the labels
    accuracy: float  # share of its pixels labelled correctly; NaN for a class that is not in the truth
    truth_share: float  # its share of the truth's non-void pixels
    pytorch_iu: float | None = None  # PyTorch's IU

    @property
    def occurs(self) -> bool:
        """Whether the class is in the truth or among the labels of the artifact or PyTorch."""
        return not math.isnan(self.iu) or not (self.pytorch_iu is None or math.isnan(self.pytorch_iu))


def class_scores(names: Sequence[str], scores: Scores, pytorch: Scores | None) -> tuple[ClassScore, ...]:
    """Return the score of each class, in their order."""
    columns = scores.class_iu.tolist(), scores.class_accuracy.tolist(), scores.truth_share.tolist()
    theirs = pytorch.class_iu.tolist() if pytorch is not None else [None] * len(names)
    return tuple(ClassScore(*row) for row in zip(names, *columns, theirs, strict=True))


@dataclass(frozen=True)
class ImageScore:
    """The scores of one image; each is 0..1, NaN where it is undefined, None without PyTorch."""

    name: str  # name of its pair
    mean_iu: float  # of the artifact's labels with the truth
    pixel_accuracy: float  # share of its non-void pixels that the artifact labels correctly
    pytorch_mean_iu: float | None = None  # of PyTorch's labels with the truth
    agreement: float | None = None  # share of its pixels with the same label from both

    @classmethod
    def of(cls, record: ImageRecord) -> Self:
        """Derive the scores from an image's pixel counts."""
        counts, scores = record.counts, Scores(record.counts.artifact)
        figures = record.name, scores.mean_iu, scores.pixel_accuracy
        if counts.pytorch is None or counts.both is None:
            return cls(*figures)
        return cls(*figures, Scores(counts.pytorch).mean_iu, Scores(counts.both).pixel_accuracy)


@dataclass(frozen=True)
class Source:
    """The artifact, the runtimes and the data set of an evaluation."""

    artifact: Path  # the artifact's path
    model_sha256: str  # hash of its model's file
    runtime: str  # name of the runtime
    pytorch: str | None  # name of the PyTorch runtime for the comparison, or None
    dataset: str  # kind and path of the data set
    fitting: str  # how photos were fitted into the input

    @property
    def conditions(self) -> dict[str, str]:
        """Everything the figures depend on, keyed for messages; the path of the artifact is not part of it."""
        return {
            "artifact": self.model_sha256,
            "runtime": self.runtime,
            "reference": self.pytorch or "none",
            "fitting": self.fitting,
            "data set": self.dataset,
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of an artifact, and of PyTorch if it was compared, on one data set.

    Attributes:
        info: the model's facts.
        source: the artifact, the runtimes and the data set.
        counts: pixel counts of all images together.
        pixels: number of pixels of all images together, including void.
        images: the scores of each image, in the order of the data set.
        failures: images that have no score; the overall scores leave them out.
        resumed: how many images an earlier run had finished.
        restart_reason: why the journal of an earlier run was discarded, e.g. `another artifact`; else empty.
    """

    info: ModelInfo
    source: Source
    counts: Confusions
    pixels: int
    images: tuple[ImageScore, ...]
    failures: tuple[Failure, ...] = ()
    resumed: int = 0
    restart_reason: str = ""

    @property
    def scores(self) -> Scores:
        """Scores of the artifact."""
        return Scores(self.counts.artifact)

    @property
    def pytorch_scores(self) -> Scores | None:
        """Scores of PyTorch on the same inputs."""
        return Scores(self.counts.pytorch) if self.counts.pytorch is not None else None

    @property
    def agreement(self) -> Scores | None:
        """Scores of the artifact's labels with PyTorch's as the truth, over all pixels."""
        return Scores(self.counts.both) if self.counts.both is not None else None

    @property
    def classes(self) -> tuple[ClassScore, ...]:
        """The scores of each of the K classes."""
        return class_scores(self.info.class_names, self.scores, self.pytorch_scores)

    @property
    def mean_iu_lost(self) -> float | None:
        """The accuracy lost in deployment: PyTorch's mean IU minus the artifact's; negative for a gain."""
        return self.pytorch_scores.mean_iu - self.scores.mean_iu if self.pytorch_scores is not None else None

    @property
    def void_share(self) -> float:
        """Share of the pixels that are void in the truth, which scores leave out; NaN without pixels."""
        return 1 - int(self.counts.artifact.sum()) / self.pixels if self.pixels else math.nan

    def worst(self, count: int) -> list[ImageScore]:
        """Return the `count` images with the lowest mean IU, worst first; images that are all void have no mean IU."""
        scored = [image for image in self.images if not math.isnan(image.mean_iu)]
        return sorted(scored, key=lambda image: (image.mean_iu, image.name))[:count]

    def require(self) -> None:
        """Check that every image has a score.

        Raises:
            InputFileError: some images have no score; names the first ten with reasons.
        """
        if not self.failures:
            return
        raise InputFileError(
            f"{len(self.failures)} of {len(self.images) + len(self.failures)} images have no score, "
            f"so the scores are incomplete:{list_first([failure.error.problem for failure in self.failures])}",
            remedy=f"{self.failures[0].error.remedy} Then run the same command again: finished images are skipped.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON; None where a score is undefined."""
        pytorch, both = self.pytorch_scores, self.agreement
        return {
            "complete": not self.failures,
            "source": {**vars(self.source), "artifact": str(self.source.artifact)},
            "model": self.info.to_metadata(),
            "pixels": self.pixels,
            "void_share": _number(self.void_share),
            "scores": _overall(self.scores),
            "pytorch_scores": _overall(pytorch) if pytorch is not None else None,
            "mean_iu_lost": _number(self.mean_iu_lost),
            "agreement": _overall(both) if both is not None else None,
            "classes": [_numbers(score) for score in self.classes],
            "images": [_numbers(score) for score in self.images],
            "confusion": {
                name: counts.tolist()
                for name, counts in msgspec.structs.asdict(self.counts).items()
                if counts is not None
            },
            "failures": [{"name": f.name, "problem": f.error.problem} for f in self.failures],
            "resumed": self.resumed,
        }


def _overall(scores: Scores) -> dict[str, float | None]:
    names = "pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"
    return {name: _number(getattr(scores, name)) for name in names}


def _numbers(score: ClassScore | ImageScore) -> dict[str, Any]:
    return {name: _number(value) for name, value in vars(score).items()}


def _number(value: Any) -> Any:
    """Return None for NaN, which JSON does not have."""
    return None if isinstance(value, float) and math.isnan(value) else value
