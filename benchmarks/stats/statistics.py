"""Statistics of latencies, and tests of their stability: pure functions of samples.

Samples come in rounds: one row is sampled for a while, then the others, then the first one again. What affects all
samples of a round (another process, a clock) shows as a difference between rounds.
"""

import math
from collections.abc import Sequence
from itertools import chain
from statistics import NormalDist

import numpy as np
import numpy.typing as npt

Rounds = Sequence[Sequence[float]]
Floats = npt.NDArray[np.float64]

CONFIDENCE = 0.95
RESAMPLES = 2000
# With fewer rounds than this, single samples are resampled instead.
MIN_ROUNDS = 5
MIN_SAMPLES = 3
# A percentile needs this many samples beyond it; with fewer it depends on single samples.
SAMPLES_BEYOND = 10
WINDOWS = 3
WINDOW_SPREAD = 0.10
DRIFT = 0.05
# Two-sided 1 % of the normal distribution.
DRIFT_Z = 2.576
MAX_HALF_WIDTH = 0.05
_Z = NormalDist().inv_cdf((1 + CONFIDENCE) / 2)
_MOST_POINTS = 100
_SEED = 0


def pooled(rounds: Rounds) -> Floats:
    """Return all samples in the order in which they were taken."""
    return np.fromiter(chain.from_iterable(rounds), dtype=np.float64)


def percentile(samples: Floats, share: float) -> float | None:
    """Return the value below which `share` (0..1) of the samples lie; None when too few samples lie beyond it."""
    # Rounded, because 100 * (1 - 0.9) is 9.999999999999998.
    if round(samples.size * (1 - share), 9) < SAMPLES_BEYOND:
        return None
    return float(np.quantile(samples, share))


def interquartile_range(samples: Floats) -> float:
    """Return the third quartile minus the first: the width of the middle half."""
    first, third = np.quantile(samples, (0.25, 0.75))
    return float(third - first)


def bootstrap_medians(rounds: Rounds, seed: int = _SEED) -> Floats:
    """Return medians of `RESAMPLES` resamples (Efron's bootstrap).

    Whole rounds are drawn where there are enough of them, because the samples of one round resemble each other, and
    drawing them singly would give too narrow an interval; otherwise single samples are drawn.
    """
    generator = np.random.default_rng(seed)
    filled = [np.asarray(taken, dtype=np.float64) for taken in rounds if len(taken)]
    if len(filled) < MIN_ROUNDS:
        filled = list(pooled(rounds).reshape(-1, 1))
    picks = generator.integers(0, len(filled), (RESAMPLES, len(filled)))
    if all(taken.size == 1 for taken in filled):
        return np.asarray(np.median(np.concatenate(filled)[picks], axis=1))
    return np.array([np.median(np.concatenate([filled[i] for i in pick])) for pick in picks])


def draws(rounds: Rounds) -> int:
    """Return how many rounds the bootstrap draws from, or how many samples where there are too few rounds."""
    filled = sum(len(taken) > 0 for taken in rounds)
    return filled if filled >= MIN_ROUNDS else sum(len(taken) for taken in rounds)


def interval(estimates: Floats, centre: float, drawn: int) -> tuple[float, float]:
    """Return the `CONFIDENCE` interval about `centre`: Student's quantile times the bootstrap's standard error.

    Of n draws the bootstrap's error is too small by sqrt((n - 1) / n), which is corrected (Efron and Tibshirani, An
    Introduction to the Bootstrap, chapters 5 and 12). With five rounds, percentiles of the bootstrap would cover the
    true median in 80 to 90 of 100 runs; this covers it in 93 to 98.
    """
    if drawn < 2:
        return centre, centre
    error = float(estimates.std()) * math.sqrt(drawn / (drawn - 1))
    return centre - student_quantile(drawn - 1) * error, centre + student_quantile(drawn - 1) * error


def student_quantile(freedom: int) -> float:
    """Return Student's t at `CONFIDENCE`, two-sided (Abramowitz and Stegun 26.7.5; 1 % accurate from 3 on)."""
    z, n = _Z, freedom
    return (
        z
        + (z**3 + z) / (4 * n)
        + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * n**2)
        + (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / (384 * n**3)
    )


def trend(samples: Floats) -> tuple[float, float]:
    """Return how samples change from first to last: (change over the median, z of the Mann-Kendall test).

    The change is the median slope between all pairs (Theil and Sen) times the length. z = (S -+ 1) / sqrt(n (n - 1)
    (2 n + 5) / 18), where S counts rising less falling pairs; ties make it smaller, so it errs towards no trend.
    More than a hundred samples are first reduced to as many medians of neighbours.
    """
    points = np.array([np.median(part) for part in np.array_split(samples, min(samples.size, _MOST_POINTS))])
    first, second = np.triu_indices(points.size, k=1)
    if not first.size:
        return 0.0, 0.0
    differences = points[second] - points[first]
    score = int(np.sign(differences).sum())
    n = points.size
    z = (score - np.sign(score)) / math.sqrt(n * (n - 1) * (2 * n + 5) / 18)
    slope = float(np.median(differences / (second - first)))
    return slope * (n - 1) / float(np.median(points)), float(z)


def windows(rounds: Rounds) -> list[float]:
    """Return the medians of the rounds, or of tenths of the samples where there are too few rounds."""
    filled = [taken for taken in rounds if len(taken)]
    if len(filled) < WINDOWS:
        samples = pooled(rounds)
        return [float(np.median(part)) for part in np.array_split(samples, min(samples.size, 10))]
    return [float(np.median(taken)) for taken in filled]


def instabilities(rounds: Rounds, bounds: tuple[float, float]) -> tuple[str, ...]:
    """Return every reason not to trust the median of these samples, whose interval is `bounds`."""
    samples = pooled(rounds)
    if samples.size < MIN_SAMPLES:
        return (f"{samples.size} samples, fewer than {MIN_SAMPLES}",)
    found = []
    last = windows(rounds)[-WINDOWS:]
    spread = max(last) / min(last) - 1
    if spread > WINDOW_SPREAD:
        found.append(f"the last {WINDOWS} windows' medians differ by {spread:.0%}")
    change, z = trend(samples)
    if abs(z) > DRIFT_Z and abs(change) > DRIFT:
        found.append(f"drifts by {change:+.0%} from first to last")
    half_width = (bounds[1] - bounds[0]) / 2 / float(np.median(samples))
    if half_width > MAX_HALF_WIDTH:
        found.append(f"the median is known to {half_width:.0%} only")
    return tuple(found)
