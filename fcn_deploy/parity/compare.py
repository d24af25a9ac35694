"""Compare two logit maps for one input: names first, then shapes and types, then values."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_deploy.errors import ParityError
from fcn_deploy.metrics import confusion_matrix
from fcn_deploy.model_info import LABELS_NAME, OUTPUT_NAME

# A flip is clear when the reference preferred its own label by more than this share of its logit range.
CLEAR_MARGIN = 0.01

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class LabelComparison:
    """The difference between a candidate's labels and the reference's, for one input."""

    input_name: str  # the input both ran on
    logit_range: float  # the reference's largest logit minus its smallest
    pixels: int  # number of labels compared
    flips: int  # labels that differ
    clear_flips: int  # flips where the reference's margin over the candidate's label exceeds CLEAR_MARGIN of the range
    largest_flip_margin: float  # the largest such margin, in logits; 0 without flips
    intersections: tuple[int, ...]  # pixels per class where both have that label
    unions: tuple[int, ...]  # pixels per class where either has that label

    @property
    def severity(self) -> float:
        """Rank for finding the worst of several: here the clearest flip's margin divided by the logit range."""
        return _over(self.largest_flip_margin, self.logit_range)

    @property
    def label_agreement(self) -> float:
        """Share of pixels with the same label, 0..1."""
        return 1 - self.flips / self.pixels

    @property
    def mean_iu(self) -> float:
        """Mean IU of the two label maps over the classes that occur in either."""
        return joint_mean_iu([self])

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, raw and derived, for JSON."""
        counts = {"intersections": list(self.intersections), "unions": list(self.unions)}
        return asdict(self) | counts | {"label_agreement": self.label_agreement, "mean_iu": self.mean_iu}


@dataclass(frozen=True)
class Comparison(LabelComparison):
    """The difference between a candidate's logits and the reference's, for one input, beside that of the labels.

    Attributes:
        max_abs_error: largest absolute difference, in logits.
        mean_abs_error: mean absolute difference, in logits.
        error_norm: Euclidean norm of the difference.
        reference_norm: Euclidean norm of the reference.
        candidate_norm: Euclidean norm of the candidate.
        dot: inner product of the two.
    """

    max_abs_error: float
    mean_abs_error: float
    error_norm: float
    reference_norm: float
    candidate_norm: float
    dot: float

    @property
    def severity(self) -> float:
        """The relative error."""
        return self.relative_error

    @property
    def relative_error(self) -> float:
        """Largest absolute error divided by the reference's logit range: the figure that tiers bound."""
        return _over(self.max_abs_error, self.logit_range)

    @property
    def relative_l2(self) -> float:
        """Norm of the error divided by the norm of the reference."""
        return _over(self.error_norm, self.reference_norm)

    @property
    def cosine(self) -> float:
        """Cosine of the angle between the two; 1 is parallel."""
        return _over(self.dot, self.reference_norm * self.candidate_norm)

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in decibels; infinite when the two are bit-identical."""
        if self.error_norm == 0:
            return float("inf")
        ratio = self.reference_norm / self.error_norm
        return float(20 * np.log10(ratio)) if ratio else float("-inf")

    @property
    def passing_tolerance(self) -> float:
        """The smallest bound on max error / range, with two digits, that would just pass."""
        if not np.isfinite(self.relative_error) or self.relative_error == 0:
            return self.relative_error
        step = 10.0 ** (np.floor(np.log10(self.relative_error)) - 1)
        return float(np.ceil(self.relative_error / step) * step)

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, raw and derived, for JSON."""
        derived = ("relative_error", "relative_l2", "cosine", "snr_db", "passing_tolerance")
        return super().to_dict() | {name: getattr(self, name) for name in derived}


def joint_mean_iu(comparisons: Sequence[LabelComparison]) -> float:
    """Return the mean IU over several inputs as if they were one: a small class in one of them weighs little."""
    intersections, unions = (
        np.sum([getattr(c, name) for c in comparisons], axis=0) for name in ("intersections", "unions")
    )
    return float(np.mean(intersections[unions > 0] / unions[unions > 0]))


def compare_outputs(
    input_name: str, reference: Mapping[str, Array], candidate: Mapping[str, Array], boundary: float = 0.0
) -> LabelComparison:
    """Compare the outputs of two runners for one input: logits with logits, or labels with the logits behind them.

    The logit of a single class is labelled 1 above `boundary`.

    Raises:
        ParityError: names or shapes differ, or either dtype is not a float type.
    """
    if list(candidate) == [LABELS_NAME] and list(reference) == [OUTPUT_NAME]:
        return compare_labels(input_name, reference[OUTPUT_NAME], candidate[LABELS_NAME], boundary)
    if list(reference) != list(candidate) or len(reference) != 1:
        raise _mismatch("outputs", ", ".join(reference), ", ".join(candidate))
    (name, expected), (_, actual) = *reference.items(), *candidate.items()
    if expected.shape != actual.shape:
        raise _mismatch(f"shape of {name}", str(expected.shape), str(actual.shape))
    if expected.dtype.kind != "f" or actual.dtype.kind != "f":
        raise _mismatch(f"type of {name}", expected.dtype.name, actual.dtype.name)
    return compare_logits(input_name, expected, actual, boundary)


def _mismatch(what: str, reference: str, candidate: str) -> ParityError:
    return ParityError(
        f"{what}: the reference has {reference}, the artifact {candidate}",
        remedy="The artifact was exported from another network.",
    )


def compare_logits(input_name: str, reference: Array, candidate: Array, boundary: float = 0.0) -> Comparison:
    """Compare two N x K x H x W float logit maps; all sums are in float64, and NaN anywhere gives NaN."""
    with np.errstate(invalid="ignore", over="ignore"):
        return _compared(input_name, reference, candidate, boundary)


def compare_labels(input_name: str, reference: Array, labels: Array, boundary: float = 0.0) -> LabelComparison:
    """Compare an N x H x W map of labels with the largest of the N x K x H x W float logits in each pixel.

    Raises:
        ParityError: the shapes do not fit, or a label is not a class of the reference.
    """
    if labels.shape != (reference.shape[0], *reference.shape[2:]):
        raise _mismatch("shape of the labels", f"logits {reference.shape}", str(labels.shape))
    if labels.max(initial=0) >= max(reference.shape[1], 2):
        raise _mismatch("largest label", f"at most {max(reference.shape[1], 2) - 1}", str(labels.max()))
    with np.errstate(invalid="ignore", over="ignore"):
        figures = _label_figures(reference.astype(np.float64), labels, boundary)
        return LabelComparison(input_name=input_name, **figures)


def _per_label(logits: Array, boundary: float) -> Array:
    """Return one logit a label: those of a single class compete with the boundary, which is the other label's."""
    return logits if logits.shape[1] > 1 else np.concatenate([np.full_like(logits, boundary), logits], axis=1)


def _label_figures(logits: Array, candidate_labels: Array, boundary: float) -> dict[str, Any]:
    logit_range = float(logits.max() - logits.min())
    expected = _per_label(logits, boundary)
    labels = expected.argmax(axis=1).astype(np.uint8)
    margins = _flip_margins(expected, labels, candidate_labels)
    counts = confusion_matrix(labels, candidate_labels, expected.shape[1])
    intersections = np.diag(counts)
    return {
        "logit_range": logit_range,
        "pixels": labels.size,
        "flips": margins.size,
        "clear_flips": int((margins > CLEAR_MARGIN * logit_range).sum()),
        "largest_flip_margin": float(margins.max(initial=0.0)),
        "intersections": tuple(intersections.tolist()),
        "unions": tuple((counts.sum(axis=0) + counts.sum(axis=1) - intersections).tolist()),
    }


def _compared(input_name: str, reference: Array, candidate: Array, boundary: float) -> Comparison:
    expected, actual = reference.astype(np.float64), candidate.astype(np.float64)
    error = np.abs(actual - expected)
    return Comparison(
        input_name=input_name,
        max_abs_error=float(error.max()),
        mean_abs_error=float(error.mean()),
        error_norm=float(np.linalg.norm(error)),
        reference_norm=float(np.linalg.norm(expected)),
        candidate_norm=float(np.linalg.norm(actual)),
        dot=float(np.vdot(expected, actual)),
        **_label_figures(expected, _per_label(actual, boundary).argmax(axis=1).astype(np.uint8), boundary),
    )


def _flip_margins(reference: Array, labels: Array, candidate_labels: Array) -> npt.NDArray[np.float64]:
    """Return, for each pixel whose label differs, the reference's logit of its label minus that of the candidate's."""
    batch, row, column = np.nonzero(labels != candidate_labels)
    own = reference[batch, labels[batch, row, column], row, column]
    other = reference[batch, candidate_labels[batch, row, column], row, column]
    return np.asarray(own - other, dtype=np.float64)


def _over(part: float, whole: float) -> float:
    if whole == 0:
        return 0.0 if part == 0 else float("inf")
    return part / whole
