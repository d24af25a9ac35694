"""Scores of single classes and of single images."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from fcn_deploy.evaluation.record import ImageRecord
from fcn_deploy.metrics import Scores


@dataclass(frozen=True)
class ClassScore:
    """The scores of one class; each is 0..1, NaN where it is undefined, None where PyTorch did not label.

    Attributes:
        name: of the class.
        iu: intersection over union; NaN for a class neither in the truth nor among the labels.
        accuracy: share of its pixels labelled right; NaN for a class that is not in the truth.
        truth_share: its share of the truth, void left out.
        pytorch_iu: PyTorch's IU.
    """

    name: str
    iu: float
    accuracy: float
    truth_share: float
    pytorch_iu: float | None = None

    @property
    def occurs(self) -> bool:
        """Whether it is in the truth or among the labels of either side."""
        return not math.isnan(self.iu) or not (self.pytorch_iu is None or math.isnan(self.pytorch_iu))


def class_scores(names: Sequence[str], scores: Scores, pytorch: Scores | None) -> tuple[ClassScore, ...]:
    """One per class, in their order."""
    columns = scores.class_iu.tolist(), scores.class_accuracy.tolist(), scores.truth_share.tolist()
    theirs = pytorch.class_iu.tolist() if pytorch is not None else [None] * len(names)
    return tuple(ClassScore(*row) for row in zip(names, *columns, theirs, strict=True))


@dataclass(frozen=True)
class ImageScore:
    """The scores of one image; each is 0..1, NaN where it is undefined, None where PyTorch did not label.

    Attributes:
        name: of its pair.
        mean_iu: of the artifact's labels with the truth.
        pixel_accuracy: share of its pixels that the artifact labels right, void left out.
        pytorch_mean_iu: of PyTorch's labels with the truth.
        agreement: share of its pixels with the same label from both.
    """

    name: str
    mean_iu: float
    pixel_accuracy: float
    pytorch_mean_iu: float | None = None
    agreement: float | None = None

    @classmethod
    def of(cls, record: ImageRecord) -> Self:
        """Derived from an image's pixel counts."""
        counts, scores = record.confusions, Scores(record.confusions.artifact)
        figures = record.name, scores.mean_iu, scores.pixel_accuracy
        if counts.pytorch is None or counts.both is None:
            return cls(*figures)
        return cls(*figures, Scores(counts.pytorch).mean_iu, Scores(counts.both).pixel_accuracy)
