"""The transforms of fast convolutions against convolution itself, in exact and in float64 arithmetic."""

from fractions import Fraction

import numpy as np
import pytest

from exporters.passes.toom_cook import ACROSS, DOWN, SplitToomCook, ToomCook, Transform

EVERY = list(dict.fromkeys(one for table in (DOWN, ACROSS) for found in table.values() for one in found))
EVERY += [SplitToomCook(4, (3, 3)), SplitToomCook(2, (3, 3, 5))]
# Lavin and Gray, Fast Algorithms for Convolutional Neural Networks, 2016, section 4.1: F(2, 3), with rows of other
# signs and scales, which cancel in the product of all three.
LAVIN_INPUT = np.array([[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, 1, 0, -1]], dtype=float)
LAVIN_WEIGHT = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, 1]])
LAVIN_OUTPUT = np.array([[1, 1, 1, 0], [0, 1, -1, -1]], dtype=float)


def trilinear(output: np.ndarray, weight: np.ndarray, given: np.ndarray) -> np.ndarray:
    """What each pair of tap and input adds to each output: outputs x taps x inputs."""
    return np.asarray(np.einsum("mn,nr,ni->mri", output, weight, given))


@pytest.mark.parametrize("transform", EVERY, ids=str)
def test_every_output_is_the_sum_of_its_taps(transform: Transform) -> None:
    found = trilinear(transform.output_transform, transform.weight_transform, transform.input_transform)

    expected = np.zeros((transform.outputs, transform.taps, transform.outputs + transform.taps - 1))
    for output in range(transform.outputs):
        for tap in range(transform.taps):
            expected[output, tap, output + tap] = 1
    assert np.abs(found - expected).max() < 1e-13
    groups = transform.groups if isinstance(transform, SplitToomCook) else (transform.taps,)
    assert transform.products == sum(transform.outputs + taps - 1 for taps in groups)


def test_the_published_matrices_are_the_same_algorithm() -> None:
    ours = ToomCook(2, 3)

    assert ours.points == (Fraction(0), Fraction(1), Fraction(-1))
    assert np.array_equal(
        trilinear(LAVIN_OUTPUT, LAVIN_WEIGHT, LAVIN_INPUT),
        trilinear(ours.output_transform, ours.weight_transform, ours.input_transform),
    )
    # Row by row equal but for a factor.
    for row, published in zip(ours.input_transform, LAVIN_INPUT, strict=True):
        assert abs(row @ published) == pytest.approx(np.linalg.norm(row) * np.linalg.norm(published))


@pytest.mark.parametrize("transform", [one for one in EVERY if isinstance(one, ToomCook)], ids=str)
def test_points_are_distinct_and_their_transforms_stay_small(transform: ToomCook) -> None:
    assert len(set(transform.points)) == transform.products - 1
    matrices = transform.input_transform, transform.weight_transform, transform.output_transform
    assert max(np.abs(matrix).max() for matrix in matrices) <= 64
