"""The outcome of an evaluation: raw pixel counts; every score is derived from them."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fcn_deploy.errors import InputFileError
from fcn_deploy.evaluation.loading import Failure
from fcn_deploy.evaluation.record import Confusions
from fcn_deploy.evaluation.scores import ClassScore, ImageScore, class_scores
from fcn_deploy.metrics import Scores
from fcn_deploy.model_info import ModelInfo

_LISTED = 10


@dataclass(frozen=True)
class Source:
    """What labelled which data set.

    Attributes:
        artifact: the artifact's path.
        model_sha256: of its model's file.
        runtime: what ran it.
        pytorch: what ran beside it, or None.
        dataset: what the data set is and where.
        fitting: how photos were fitted into the input.
    """

    artifact: Path
    model_sha256: str
    runtime: str
    pytorch: str | None
    dataset: str
    fitting: str

    @property
    def conditions(self) -> dict[str, str]:
        """All that the figures depend on, by the word for it; the place of the artifact is no such thing."""
        return {
            "artifact": self.model_sha256,
            "runtime": self.runtime,
            "reference": self.pytorch or "none",
            "fitting": self.fitting,
            "data set": self.dataset,
        }


@dataclass(frozen=True)
class Evaluation:
    """Scores of an artifact, and of PyTorch where it labelled too, over one data set.

    Attributes:
        info: the model's facts.
        source: what labelled which data set.
        counts: pixel counts of all images together.
        pixels: of all images together, void ones too.
        images: the scores of each image, in the order of the data set.
        failures: images that have no score; where there are any, the scores are those of the rest.
        resumed: how many images an earlier run had finished.
        anew: why an earlier run's journal was of no use, e.g. `another artifact`; else empty.
    """

    info: ModelInfo
    source: Source
    counts: Confusions
    pixels: int
    images: tuple[ImageScore, ...]
    failures: tuple[Failure, ...] = ()
    resumed: int = 0
    anew: str = ""

    @property
    def scores(self) -> Scores:
        """Of the artifact."""
        return Scores(self.counts.artifact)

    @property
    def pytorch_scores(self) -> Scores | None:
        """Of PyTorch on the same inputs."""
        return Scores(self.counts.pytorch) if self.counts.pytorch is not None else None

    @property
    def agreement(self) -> Scores | None:
        """Of the artifact's labels with PyTorch's as the truth, over all pixels."""
        return Scores(self.counts.both) if self.counts.both is not None else None

    @property
    def classes(self) -> tuple[ClassScore, ...]:
        """The scores of each of the K classes."""
        return class_scores(self.info.class_names, self.scores, self.pytorch_scores)

    @property
    def mean_iu_lost(self) -> float | None:
        """The accuracy lost in deployment: PyTorch's mean IU less the artifact's; below 0 where it gained."""
        return self.pytorch_scores.mean_iu - self.scores.mean_iu if self.pytorch_scores is not None else None

    @property
    def void_share(self) -> float:
        """Share of the pixels that are void in the truth, which no score counts; NaN without pixels."""
        return 1 - int(self.counts.artifact.sum()) / self.pixels if self.pixels else math.nan

    def worst(self, count: int) -> list[ImageScore]:
        """The `count` images of the least mean IU, worst first; those that are all void have none."""
        scored = [image for image in self.images if not math.isnan(image.mean_iu)]
        return sorted(scored, key=lambda image: (image.mean_iu, image.name))[:count]

    def require(self) -> None:
        """Do nothing when every image has a score.

        Raises:
            InputFileError: some have none; names the first ten and why.
        """
        if not self.failures:
            return
        shown = [f"\n  {failure.error.problem}" for failure in self.failures[:_LISTED]]
        more = len(self.failures) - _LISTED
        shown += [f"\n  and {more} more"] if more > 0 else []
        raise InputFileError(
            f"{len(self.failures)} of {len(self.images) + len(self.failures)} images have no score, "
            f"so that the scores are incomplete:{''.join(shown)}",
            remedy=f"{self.failures[0].error.remedy} Run the same again: what is finished is not done twice.",
        )

    def to_dict(self) -> dict[str, Any]:
        """Every figure, for JSON; None where a score is undefined."""
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
            "confusion": {name: counts.tolist() for name, counts in vars(self.counts).items() if counts is not None},
            "failures": [{"name": f.name, "problem": f.error.problem} for f in self.failures],
            "resumed": self.resumed,
        }


def _overall(scores: Scores) -> dict[str, float | None]:
    names = "pixel_accuracy", "mean_accuracy", "mean_iu", "frequency_weighted_iu"
    return {name: _number(getattr(scores, name)) for name in names}


def _numbers(score: ClassScore | ImageScore) -> dict[str, Any]:
    return {name: _number(value) for name, value in vars(score).items()}


def _number(value: Any) -> Any:
    """JSON has no NaN."""
    return None if isinstance(value, float) and math.isnan(value) else value
