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


def by_definition(truth: np.ndarray, predicted: np.ndarray, classes: int) -> dict[str, object]:
    """The definitions of Long et al. (CVPR 2015, section 5), class by class from masks; no confusion matrix anywhere.

    n_ii: pixels of class i labelled i; t_i: pixels of class i; void pixels are left out on both sides.
    """
    known = truth != 255
    t, p = truth[known], predicted[known]
    hits = [int(np.count_nonzero((t == k) & (p == k))) for k in range(classes)]
    in_truth = [int(np.count_nonzero(t == k)) for k in range(classes)]
    in_either = [int(np.count_nonzero((t == k) | (p == k))) for k in range(classes)]
    nan = float("nan")
    iu = np.array([n / u if u else nan for n, u in zip(hits, in_either, strict=True)])
    accuracy = np.array([n / m if m else nan for n, m in zip(hits, in_truth, strict=True)])
    share = np.array([m / t.size if t.size else nan for m in in_truth])
    return {
        "class_iu": iu,
        "class_accuracy": accuracy,
        "truth_share": share,
        "pixel_accuracy": sum(hits) / t.size if t.size else nan,
        "mean_accuracy": np.nanmean(accuracy) if t.size else nan,
        "mean_iu": np.nanmean(iu) if t.size else nan,
        "frequency_weighted_iu": (share[share > 0] * iu[share > 0]).sum() if t.size else nan,
    }


def random_pair(rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, int]:
    """Labels of 1 to 255 classes, some in neither map, some in one; with void, now and then nothing else."""
    classes = int(rng.choice([1, 2, 7, 21, 60, 255]))
    shape = tuple(rng.integers(1, 40, 2))
    inside, guessed = (rng.choice(classes, rng.integers(1, classes + 1), replace=False) for _ in range(2))
    truth = rng.choice(inside, shape).astype(np.uint8)
    truth[rng.random(shape) < rng.choice([0, 0.1, 0.9, 1.0], p=[0.3, 0.4, 0.25, 0.05])] = 255
    predicted = rng.choice(guessed, shape).astype(np.uint8)
    right = (rng.random(shape) < rng.uniform(0, 1)) & (truth != 255)
    predicted[right] = truth[right]
    return truth, predicted, classes


def test_a_thousand_random_pairs_agree_with_the_definitions_bit_for_bit() -> None:
    rng = np.random.default_rng(2015)
    seen = {"void alone": 0, "absent": 0, "predicted but absent": 0}
    for _ in range(1000):
        truth, predicted, classes = random_pair(rng)
        scores = Scores(confusion_matrix(truth, predicted, classes))
        expected = by_definition(truth, predicted, classes)

        for name, value in expected.items():
            np.testing.assert_array_equal(getattr(scores, name), value, err_msg=name)
        seen["void alone"] += bool((truth == 255).all())
        seen["absent"] += bool(np.isnan(scores.class_iu).any())
        seen["predicted but absent"] += bool(((scores.class_iu == 0) & np.isnan(scores.class_accuracy)).any())

    assert min(seen.values()) > 20, seen


def test_matrices_of_parts_add_up_to_the_matrix_of_the_whole() -> None:
    rng = np.random.default_rng(0)
    pairs = [random_pair(rng)[:2] for _ in range(50)]
    matrices = [confusion_matrix(truth, predicted, 255) for truth, predicted in pairs]
    truth, predicted = (np.concatenate([pair[side].ravel() for pair in pairs]) for side in (0, 1))

    np.testing.assert_array_equal(sum(matrices), confusion_matrix(truth, predicted, 255))
    for name, value in by_definition(truth, predicted, 255).items():
        np.testing.assert_array_equal(getattr(Scores(sum(matrices)), name), value, err_msg=name)  # type: ignore[arg-type]
