"""Made-up series with answers known beforehand, or from a second implementation."""

import itertools
import math
import statistics as standard

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmarks.stats import statistics

QUIET = [100.0, 101.0, 100.5, 99.5, 100.2]


def rounds(*samples: float, of: int = 1) -> list[list[float]]:
    return [list(samples[i : i + of]) for i in range(0, len(samples), of)]


def reasons(taken: list[list[float]]) -> str:
    return "; ".join(statistics.instabilities(taken, interval(taken)))


def interval(taken: list[list[float]]) -> tuple[float, float]:
    centre = float(np.median(statistics.pooled(taken)))
    return statistics.interval(statistics.bootstrap_medians(taken), centre, statistics.draws(taken))


@pytest.mark.parametrize(("count", "share", "known"), [
    (99, 0.90, False), (100, 0.90, True), (199, 0.95, False), (200, 0.95, True), (999, 0.99, False), (1000, 0.99, True),
])  # fmt: skip
def test_a_percentile_needs_ten_samples_beyond_it(count: int, share: float, known: bool) -> None:
    found = statistics.percentile(np.arange(1.0, count + 1), share)

    assert (found is not None) == known
    if found is not None:
        # Linear interpolation between order statistics, as the textbook has it.
        assert found == pytest.approx(1 + (count - 1) * share)


def test_quartiles_of_a_known_series() -> None:
    assert statistics.interquartile_range(np.arange(1.0, 10.0)) == 4.0  # 7 - 3


def test_constant_samples_have_an_interval_without_width() -> None:
    assert interval(rounds(*[5.0] * 20)) == (5.0, 5.0)


def test_the_interval_agrees_with_exact_order_statistics() -> None:
    """For a median of n samples, order statistics j and n + 1 - j cover it with a probability known exactly."""
    n = 401
    samples = np.random.default_rng(1).normal(100, 5, n)
    covered = [sum(math.comb(n, i) for i in range(j, n - j + 1)) / 2**n for j in range(1, n // 2)]
    j = max(i for i, c in enumerate(covered, start=1) if c >= 0.95)
    ordered = np.sort(samples)

    low, high = interval(samples.reshape(-1, 1).tolist())

    assert high - low == pytest.approx(ordered[n - j] - ordered[j - 1], rel=0.25)
    assert (low + high) / 2 == pytest.approx(np.median(samples))


@pytest.mark.parametrize(("rounds", "samples", "round_noise"), [
    (25, 1, 0.0), (5, 1, 0.0), (5, 20, 1.0),
])  # fmt: skip
def test_the_interval_covers_the_true_median_as_often_as_promised(
    rounds: int, samples: int, round_noise: float
) -> None:
    """Also with the five rounds that are the default, and with rounds that differ as much as their samples do."""
    generator = np.random.default_rng(2)
    hits = 0
    for _ in range(300):
        taken = generator.normal(0, 1, (rounds, samples)) + generator.normal(0, round_noise, (rounds, 1))
        low, high = interval((taken + 100).tolist())
        hits += low <= 100 <= high

    assert 0.92 <= hits / 300 <= 0.99


@pytest.mark.parametrize(("freedom", "published"), [
    (3, 3.182), (4, 2.776), (5, 2.571), (9, 2.262), (20, 2.086), (120, 1.980),
])  # fmt: skip
def test_students_quantile_agrees_with_the_published_table(freedom: int, published: float) -> None:
    assert statistics.student_quantile(freedom) == pytest.approx(published, rel=0.01)


def test_whole_rounds_are_drawn_because_their_samples_resemble_each_other() -> None:
    """Five rounds that differ, a hundred equal samples in each: single draws would promise a hundred times too much."""
    taken = [[value] * 100 for value in (100.0, 110.0, 105.0, 95.0, 102.0)]

    low, high = interval(taken)

    # All orders of drawing five of five: the exact standard error of the median of means.
    medians = [standard.median(pick) for pick in itertools.product((100.0, 110.0, 105.0, 95.0, 102.0), repeat=5)]
    half = 2.776 * math.sqrt(5 / 4) * standard.pstdev(medians)
    assert (low, high) == pytest.approx((102 - half, 102 + half), rel=0.01)


@given(st.lists(st.integers(1, 6), min_size=3, max_size=12))
def test_trend_counts_pairs_like_a_double_loop(values: list[int]) -> None:
    n = len(values)
    score = sum(np.sign(b - a) for a, b in itertools.combinations(values, 2))
    slopes = [(values[j] - values[i]) / (j - i) for i, j in itertools.combinations(range(n), 2)]
    expected_z = (score - np.sign(score)) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)

    change, z = statistics.trend(np.array(values, dtype=float))

    assert z == pytest.approx(expected_z)
    assert change == pytest.approx(standard.median(slopes) * (n - 1) / standard.median(values))


def test_published_mann_kendall_example() -> None:
    """S = 21 for seven rising values; variance 7 * 6 * 19 / 18 = 44.33 (Gilbert 1987, chapter 16)."""
    assert statistics.trend(np.arange(1.0, 8.0))[1] == pytest.approx(20 / math.sqrt(44.333333), rel=1e-6)


def test_a_quiet_series_is_stable() -> None:
    assert reasons(rounds(*QUIET)) == ""


def test_drift_is_found_even_when_neighbours_are_close() -> None:
    drifting = rounds(*[100 + 0.4 * i for i in range(50)], of=10)

    assert "drifts by +18% from first to last" in reasons(drifting)


def test_a_short_drift_below_the_bound_is_none() -> None:
    assert reasons(rounds(*[100 + 0.05 * i for i in range(50)], of=10)) == ""


def test_two_modes_one_after_the_other() -> None:
    assert "the last 3 windows' medians differ by 30%" in reasons(rounds(*[100.0] * 4, 130.0))


def test_two_modes_at_random_leave_the_median_unknown() -> None:
    generator = np.random.default_rng(0)
    taken = generator.choice([100.0, 140.0], (5, 20)).tolist()

    assert "the median is known to" in reasons(taken)


def test_one_outlier_changes_nothing_and_is_kept() -> None:
    taken = [[100.0, 100.1, 100.2], [100.1, 100.0, 900.0], [100.0, 100.2, 100.1], [100.0] * 3, [100.1] * 3]

    assert reasons(taken) == ""
    assert statistics.pooled(taken).max() == 900.0


def test_too_few_samples_are_never_stable() -> None:
    assert reasons(rounds(100.0, 100.0)) == "2 samples, fewer than 3"


def test_one_long_round_is_cut_into_windows() -> None:
    assert statistics.windows([list(map(float, range(100)))])[:2] == [4.5, 14.5]
