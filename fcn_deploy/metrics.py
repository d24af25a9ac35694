"""Segmentation scores from one confusion matrix, as Long et al. (CVPR 2015, section 5) define them."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from fcn_deploy.model_info import VOID_LABEL

Counts = npt.NDArray[np.int64]


def confusion_matrix(truth: npt.NDArray[np.uint8], predicted: npt.NDArray[np.uint8], num_classes: int) -> Counts:
    """Return K x K pixel counts, rows the truth, columns the prediction; void (255) is dropped from the truth only."""
    counted = truth != VOID_LABEL
    pairs = truth[counted].astype(np.int64) * num_classes + predicted[counted]
    return np.bincount(pairs, minlength=num_classes**2).reshape(num_classes, num_classes)


@dataclass(frozen=True)
class Scores:
    """Scores derived from a confusion matrix; each is 0..1, NaN where it is undefined.

    Attributes:
        counts: the K x K matrix, rows the truth.
    """

    counts: Counts

    @property
    def pixel_accuracy(self) -> float:
        """Share of pixels labelled correctly."""
        return float(_ratio(np.trace(self.counts), self.counts.sum()))

    @property
    def class_accuracy(self) -> npt.NDArray[np.float64]:
        """Share of each class's pixels labelled correctly; NaN for a class that is not in the truth."""
        return _ratio(np.diag(self.counts), self.counts.sum(axis=1))

    @property
    def truth_share(self) -> npt.NDArray[np.float64]:
        """Share of each class in the truth; all NaN without any truth."""
        return _ratio(self.counts.sum(axis=1), self.counts.sum())

    @property
    def mean_accuracy(self) -> float:
        """Mean, over the classes in the truth, of the share of their pixels labelled correctly."""
        return _nanmean(self.class_accuracy)

    @property
    def class_iu(self) -> npt.NDArray[np.float64]:
        """Intersection over union of each class; NaN for a class neither in the truth nor predicted."""
        diagonal = np.diag(self.counts)
        return _ratio(diagonal, self.counts.sum(axis=1) + self.counts.sum(axis=0) - diagonal)

    @property
    def mean_iu(self) -> float:
        """Mean IU; a class that is predicted but not in the truth has IU 0 and counts."""
        return _nanmean(self.class_iu)

    @property
    def frequency_weighted_iu(self) -> float:
        """IU weighted by each class's share of the truth."""
        share = self.truth_share
        present = share > 0
        return float((share[present] * self.class_iu[present]).sum()) if present.any() else float("nan")


def _ratio(part: npt.ArrayLike, whole: npt.ArrayLike) -> npt.NDArray[np.float64]:
    part, whole = np.asarray(part, dtype=np.float64), np.asarray(whole, dtype=np.float64)
    undefined = np.full(np.broadcast(part, whole).shape, np.nan)
    return np.asarray(np.divide(part, whole, out=undefined, where=whole != 0))


def _nanmean(values: npt.NDArray[np.float64]) -> float:
    return float(np.nanmean(values)) if not np.isnan(values).all() else float("nan")
