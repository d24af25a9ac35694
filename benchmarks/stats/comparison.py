"""Compares rows: ratios of medians with their intervals, and whether rows of one report are slower than another's."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from benchmarks.report.results import BenchReport, Row, RowKey
from benchmarks.stats import statistics
from benchmarks.stats.timing import Measurement
from fcn_deploy.errors import MeasurementError, RegressionError, UsageError

# Medians of equal runs on a quiet machine differ by a percent; smaller differences than this do not count.
THRESHOLD = 0.02
_OTHER_SEED = 1


class Verdict(StrEnum):
    """Whether a row became faster or slower."""

    FASTER = "faster"
    SLOWER = "slower"
    SAME = "no difference"


@dataclass(frozen=True)
class Ratio:
    """One time over another, with its 95 % confidence interval from the bootstrap."""

    value: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.value:.2f} ({self.low:.2f} .. {self.high:.2f})"

    @classmethod
    def of(cls, measured: Measurement, baseline: Measurement) -> "Ratio":
        """Return the median of `measured` over that of `baseline`, which were measured at different times."""
        # Another seed: two resamplings of the same samples must not move together.
        resampled = statistics.bootstrap_medians(measured.rounds_ns, _OTHER_SEED)
        value = measured.median_ns / baseline.median_ns
        draws = min(measured.draws, baseline.draws)
        return cls(value, *statistics.interval(resampled / baseline.bootstrap_ns, value, draws))

    @classmethod
    def of_pairs(cls, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> "Ratio":
        """Return the median ratio of rounds that were sampled one right after the other: (measured, baseline).

        What slows the machine down, for one round or from some moment on, slows both sides of a pair, and cancels.
        """
        ratios = [float(np.median(measured) / np.median(baseline)) for measured, baseline in pairs]
        value = float(np.median(ratios))
        resampled = statistics.bootstrap_medians([(ratio,) for ratio in ratios])
        return cls(value, *statistics.interval(resampled, value, len(ratios)))

    @classmethod
    def of_rows(cls, row: Row, baseline: Row) -> "Ratio":
        """Return the ratio of two measured rows of one report: of pairs of rounds if they took enough turns."""
        if row.measurement is None or baseline.measurement is None:
            raise ValueError("a row without a measurement has no ratio")
        same_bundle = (row.key.network, row.key.shape) == (baseline.key.network, baseline.key.shape)
        pairs = _pairs(row, baseline) if same_bundle else []
        if len(pairs) < statistics.MIN_ROUNDS:
            return cls.of(row.measurement, baseline.measurement)
        return cls.of_pairs(pairs)

    def verdict(self, threshold: float = THRESHOLD) -> Verdict:
        """Return faster or slower if the interval excludes 1 and the difference exceeds the threshold."""
        if self.low > 1 and self.value > 1 + threshold:
            return Verdict.SLOWER
        if self.high < 1 and self.value < 1 - threshold:
            return Verdict.FASTER
        return Verdict.SAME


def _pairs(row: Row, baseline: Row) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Return the rounds of two rows that were sampled in the same turns."""
    rounds, others = (
        dict(enumerate(one.measurement.rounds_ns, one.first_turn)) if one.measurement else {} for one in (row, baseline)
    )
    return [(rounds[turn], others[turn]) for turn in rounds if turn in others]


@dataclass(frozen=True)
class RowChange:
    """A row that both reports have."""

    key: RowKey  # which row
    before: Measurement  # its latencies in the first report
    after: Measurement  # its latencies in the second
    ratio: Ratio  # the second's median over the first's
    verdict: Verdict  # whether it became faster or slower

    @property
    def stable(self) -> bool:
        """Whether both measurements are stable."""
        return self.before.stable and self.after.stable

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON."""
        found, interval = self.ratio, [self.ratio.low, self.ratio.high]
        figures = {"ratio": found.value, "interval": interval, "verdict": str(self.verdict), "stable": self.stable}
        return {"row": str(self.key), **figures}


@dataclass(frozen=True)
class ReportComparison:
    """Two reports, row by row.

    Attributes:
        changes: rows measured in both.
        lost: rows measured in the first only.
        gained: rows measured in the second only.
        machines: where each was measured.
    """

    changes: tuple[RowChange, ...]
    lost: tuple[RowKey, ...]
    gained: tuple[RowKey, ...]
    machines: tuple[str, str]

    def require_no_regression(self) -> None:
        """Check that no row became slower and that all are stable.

        Raises:
            RegressionError: rows became slower, or are no longer measured.
            MeasurementError: no row became slower, but some are unstable.
        """
        slower = [change for change in self.changes if change.verdict is Verdict.SLOWER]
        if slower or self.lost:
            problems = [f"{c.key} takes {c.ratio.value:.2f} times as long" for c in slower]
            problems += [f"{key} is no longer measured" for key in self.lost]
            raise RegressionError("; ".join(problems), remedy="Look at both with `fcn-deploy report A.json B.json`.")
        unstable = [change for change in self.changes if not change.stable]
        if unstable:
            raise MeasurementError(
                f"unstable: {'; '.join(str(change.key) for change in unstable)}",
                remedy="Measure again on a quiet machine, or with a longer --duration.",
            )

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON."""
        return {
            "machines": list(self.machines),
            "rows": [change.to_dict() for change in self.changes],
            "lost": [str(key) for key in self.lost],
            "gained": [str(key) for key in self.gained],
        }


def compare_reports(before: BenchReport, after: BenchReport, threshold: float = THRESHOLD) -> ReportComparison:
    """Compare the rows that both reports measured.

    Args:
        before: the baseline.
        after: the report that is judged.
        threshold: smallest difference of medians that counts, as a share.

    Raises:
        UsageError: the threshold is not in 0..1 (1 excluded), or the reports have no row in common.
    """
    if not 0 <= threshold < 1:
        raise UsageError(
            f"threshold {threshold:g} is not in 0..1 (1 excluded)", remedy="Pass a share, e.g. 0.02 for 2 %."
        )
    first, second = _measured(before), _measured(after)
    if not first.keys() & second.keys():
        names = (", ".join(map(str, keys)) or "nothing" for keys in (first, second))
        raise UsageError(
            f"no row in common: {' against '.join(names)}",
            remedy="Compare reports of the same bundles, sizes and provider.",
        )
    changes = []
    for key in (key for key in first if key in second):
        ratio = Ratio.of(second[key], first[key])
        changes.append(RowChange(key, first[key], second[key], ratio, ratio.verdict(threshold)))
    lost = tuple(key for key in first if key not in second)
    gained = tuple(key for key in second if key not in first)
    return ReportComparison(tuple(changes), lost, gained, (before.machine, after.machine))


def _measured(report: BenchReport) -> dict[RowKey, Measurement]:
    return {row.key: row.measurement for row in report.rows if row.measurement is not None}
