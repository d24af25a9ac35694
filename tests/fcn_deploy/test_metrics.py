from fractions import Fraction

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from fcn_deploy.metrics import Scores, confusion_matrix

LABELS = hnp.arrays(np.uint8, (6, 7), elements=st.sampled_from([0, 1, 2, 3, 255]))
PREDICTIONS = hnp.arrays(np.uint8, (6, 7), elements=st.integers(0, 3))


def test_a_worked_example() -> None:
    """Two classes, three pixels right, one wrong, one void: worked out by hand."""
    truth = np.array([[0, 0, 1, 1, 255]], dtype=np.uint8)
    predicted = np.array([[0, 1, 1, 1, 0]], dtype=np.uint8)

    scores = Scores(confusion_matrix(truth, predicted, 2))

    assert scores.counts.tolist() == [[1, 1], [0, 2]]
    assert scores.pixel_accuracy == 3 / 4
    assert scores.mean_accuracy == (1 / 2 + 1) / 2
    assert scores.class_iu.tolist() == [1 / 2, 2 / 3]
    assert scores.mean_iu == pytest.approx(7 / 12)
    assert scores.frequency_weighted_iu == pytest.approx(7 / 12)


@given(LABELS, PREDICTIONS)
def test_agrees_with_counting_pixel_by_pixel(truth: np.ndarray, predicted: np.ndarray) -> None:
    pairs = [(int(t), int(p)) for t, p in zip(truth.ravel(), predicted.ravel(), strict=True) if t != 255]
    scores = Scores(confusion_matrix(truth, predicted, 4))
    unions, accuracies = [], []
    for k in range(4):
        hits = sum(t == p == k for t, p in pairs)
        union = sum(k in (t, p) for t, p in pairs)
        in_truth = sum(t == k for t, _ in pairs)
        unions += [Fraction(hits, union)] if union else []
        accuracies += [Fraction(hits, in_truth)] if in_truth else []

    if not pairs:
        assert np.isnan([scores.pixel_accuracy, scores.mean_accuracy, scores.mean_iu]).all()
        return
    assert scores.pixel_accuracy == pytest.approx(float(Fraction(sum(t == p for t, p in pairs), len(pairs))))
    assert scores.mean_accuracy == pytest.approx(float(sum(accuracies) / len(accuracies)))
    assert scores.mean_iu == pytest.approx(float(sum(unions) / len(unions)))


def test_a_class_predicted_but_absent_counts_as_zero() -> None:
    scores = Scores(np.array([[3, 1, 0], [0, 0, 0], [0, 0, 0]]))

    assert scores.class_iu[:2].tolist() == [0.75, 0.0]
    assert np.isnan(scores.class_iu[2])
    assert scores.mean_iu == 0.375
    assert scores.frequency_weighted_iu == 0.75
