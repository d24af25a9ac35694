"""Thresholds against slow second implementations of percentile and Kullback-Leibler divergence."""

from math import ceil, inf, log

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.precision.observe import BINS, Activation, threshold
from fcn_deploy.choices import Calibration

LEVELS, STRIDE = 128, 7


def activation(values: np.ndarray) -> Activation:
    """Every value is counted: each is written as often as the histogram strides."""
    found = Activation()
    found.add(np.repeat(values.astype(np.float32), STRIDE))
    return found


def seen(kind: str, count: int = 200_000) -> np.ndarray:
    rng = np.random.default_rng(11)
    made = {
        "normal": rng.normal(0, 3, count),
        "relu": np.maximum(rng.normal(0, 3, count), 0),
        "exponential": rng.exponential(1, count),
        "outlier": np.append(rng.exponential(1, count), 40.0),
    }[kind]
    return np.asarray(made, np.float32)


def slow_entropy(counts: list[int]) -> int:
    """The slides' pseudocode, loop by loop: how many bins are kept at the least divergence."""
    counts = [0, *counts[1:]]
    best = (inf, 0)
    for kept in range(LEVELS, BINS + 1, 16):
        reference = [float(n) for n in counts[:kept]]
        reference[-1] += sum(counts[kept:])
        candidate = [0.0] * kept
        for level in range(LEVELS):
            holds = [i for i in range(kept) if i * LEVELS // kept == level]
            filled = [i for i in holds if counts[i]]
            for i in filled:
                candidate[i] = sum(counts[j] for j in holds) / len(filled)
        whole, quantized = sum(reference), sum(candidate)
        divergence = 0.0
        for p, q in zip(reference, candidate, strict=True):
            if p and q:
                divergence += p / whole * log(p / whole * quantized / q)
            elif p:
                divergence += p / whole * log(1e12)
        best = min(best, (divergence, kept))
    return best[1]


@pytest.mark.parametrize("method", list(Calibration))
def test_a_map_of_zeros_has_no_threshold(method: Calibration) -> None:
    assert threshold(activation(np.zeros(9)), method) == 0


@given(st.lists(st.floats(-1000, 1000, width=32, allow_subnormal=False), min_size=1))
def test_minmax_is_the_largest_magnitude_exactly(values: list[float]) -> None:
    found = activation(np.array(values))

    assert threshold(found, Calibration.MINMAX) == max(abs(value) for value in values)


@pytest.mark.parametrize("kind", ["normal", "relu", "exponential", "outlier"])
def test_the_percentile_is_numpy_s_to_a_bin(kind: str) -> None:
    values = seen(kind)
    found = activation(values)
    expected = np.quantile(np.abs(values), 0.99999, method="inverted_cdf")

    chosen = threshold(found, Calibration.PERCENTILE)

    assert expected <= chosen <= expected + found.width


@settings(deadline=None)
@given(st.lists(st.integers(0, 50_000), min_size=2, max_size=60))
def test_the_percentile_keeps_as_few_bins_as_hold_it(numbers: list[int]) -> None:
    found = activation(np.array([*numbers, 60_001]))  # which is no border of two bins

    kept = ceil(threshold(found, Calibration.PERCENTILE) / found.width)

    assert found.counts[: kept - 1].sum() < 0.99999 * found.counts.sum() <= found.counts[:kept].sum()


@pytest.mark.parametrize("kind", ["normal", "relu", "exponential", "outlier"])
def test_the_entropy_is_that_of_the_slides_loop_by_loop(kind: str) -> None:
    found = activation(seen(kind, 3000))

    expected = min(found.largest, slow_entropy(found.counts.tolist()) * found.width)

    assert threshold(found, Calibration.ENTROPY) == expected


def test_entropy_cuts_off_an_outlier_that_minmax_keeps() -> None:
    found = activation(seen("outlier"))

    assert threshold(found, Calibration.MINMAX) == 40
    assert 4 < threshold(found, Calibration.ENTROPY) < 12


@pytest.mark.parametrize("method", [Calibration.PERCENTILE, Calibration.ENTROPY])
def test_nothing_beyond_the_largest_value_is_kept(method: Calibration) -> None:
    found = activation(np.linspace(0, 1.5, 4001))

    assert threshold(found, method) <= 1.5


def test_zeros_do_not_decide_the_entropy() -> None:
    values = seen("exponential", 3000)
    many = np.concatenate([values, np.zeros(100_000, np.float32)])

    assert threshold(activation(many), Calibration.ENTROPY) == threshold(activation(values), Calibration.ENTROPY)


def test_a_map_whose_counted_values_are_all_zeros_keeps_everything() -> None:
    found = Activation()
    found.add(np.array([0, 0, 5], np.float32))

    assert threshold(found, Calibration.ENTROPY) == 5
