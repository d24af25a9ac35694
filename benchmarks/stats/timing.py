"""Measure latencies: the first run separately, then warm-up by time, then rounds of samples.

Tests replace the clock, so that they need not wait.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Annotated, Any

import msgspec
import numpy as np

from benchmarks.stats import statistics
from benchmarks.stats.statistics import Floats
from fcn_deploy.errors import check_range

# Returns nanoseconds from any fixed point.
Clock = Callable[[], int]
Call = Callable[[], object]

MIN_DURATION_S, MAX_DURATION_S = 0.01, 3600.0
PERCENTILES = (0.9, 0.95, 0.99)


@dataclass(frozen=True)
class Protocol:
    """The duration and number of a row's samples.

    Attributes:
        duration_s: seconds of samples per row, over all rounds.
        warmup_s: seconds of runs before the first sample; the very first run counts towards them.
        rounds: how often the rows take turns; each row gets at least one sample per round.
        ceiling_s: seconds for each of the device's ceilings, before the rows and again after them.

    Raises:
        UsageError: the duration is out of its bounds.
    """

    duration_s: float = 10.0
    warmup_s: float = 1.0
    rounds: int = 10
    ceiling_s: float = 1.0

    def __post_init__(self) -> None:
        check_range("seconds of samples per row", self.duration_s, MIN_DURATION_S, MAX_DURATION_S, option="--duration")

    @classmethod
    def of_duration(cls, duration_s: float) -> "Protocol":
        """Return the usual protocol for rows of `duration_s` seconds; warm-up and ceilings take no longer than a row.

        Raises:
            UsageError: the duration is out of its bounds.
        """
        return cls(duration_s, min(cls.warmup_s, duration_s), ceiling_s=min(cls.ceiling_s, duration_s))

    @property
    def round_s(self) -> float:
        """Seconds of samples per row and round."""
        return self.duration_s / self.rounds


def time_once(call: Call, clock: Clock = time.perf_counter_ns) -> int:
    """Return the nanoseconds that one call takes."""
    start = clock()
    call()
    return clock() - start


def warm_up(call: Call, seconds: float, clock: Clock = time.perf_counter_ns) -> int:
    """Call until `seconds` have passed; return the number of calls, which is 0 for 0 seconds."""
    end, calls = clock() + int(seconds * 1e9), 0
    while clock() < end:
        call()
        calls += 1
    return calls


def sample(call: Call, seconds: float, clock: Clock = time.perf_counter_ns) -> list[int]:
    """Time single calls for `seconds`, at least one; return the nanoseconds of each."""
    taken = [time_once(call, clock)]
    total = taken[0]
    while total < seconds * 1e9:
        taken.append(time_once(call, clock))
        total += taken[-1]
    return taken


def clock_overhead_ns(clock: Clock = time.perf_counter_ns) -> float:
    """Return what timing adds to a sample: the median of an empty call."""
    return float(np.median([time_once(lambda: None, clock) for _ in range(1001)]))


_Nanoseconds = Annotated[int, msgspec.Meta(ge=0)]
_Samples = Annotated[tuple[Annotated[int, msgspec.Meta(ge=1)], ...], msgspec.Meta(min_length=1)]


@dataclass(frozen=True)
class Measurement:
    """The latencies of one row.

    Attributes:
        first_ns: the first run: allocation, algorithm search, compilation.
        rounds_ns: the samples, a tuple per round.
        phases_ns: samples of separately timed phases: `device` (between CUDA events), `upload`, `download`.
    """

    first_ns: _Nanoseconds
    rounds_ns: Annotated[tuple[_Samples, ...], msgspec.Meta(min_length=1)]
    phases_ns: Mapping[str, tuple[_Nanoseconds, ...]] = field(default_factory=dict)

    @cached_property
    def samples_ns(self) -> Floats:
        """All samples in order."""
        return statistics.pooled(self.rounds_ns)

    @property
    def median_ns(self) -> float:
        """The figure in reports."""
        return float(np.median(self.samples_ns))

    @property
    def phase_medians_ns(self) -> dict[str, float]:
        """Medians of the phases that were timed separately."""
        return {name: float(np.median(taken)) for name, taken in self.phases_ns.items() if taken}

    @property
    def iqr_ns(self) -> float:
        """Width of the middle half of the samples."""
        return statistics.interquartile_range(self.samples_ns)

    @cached_property
    def bootstrap_ns(self) -> Floats:
        """Medians of resamples, from which intervals are taken."""
        return statistics.bootstrap_medians(self.rounds_ns)

    @property
    def interval_ns(self) -> tuple[float, float]:
        """95 % confidence interval of the median."""
        return statistics.interval(self.bootstrap_ns, self.median_ns, self.draws)

    @property
    def draws(self) -> int:
        """How many rounds the bootstrap drew from, or samples where there are few rounds."""
        return statistics.draws(self.rounds_ns)

    @property
    def percentiles_ns(self) -> dict[str, float]:
        """p90, p95 and p99, if enough samples lie beyond them."""
        found = {f"p{share * 100:.0f}": statistics.percentile(self.samples_ns, share) for share in PERCENTILES}
        return {name: value for name, value in found.items() if value is not None}

    @cached_property
    def instabilities(self) -> tuple[str, ...]:
        """Every reason to doubt the median; empty when it is stable."""
        return statistics.instabilities(self.rounds_ns, self.interval_ns)

    @property
    def stable(self) -> bool:
        """Whether there is no reason not to trust the median."""
        return not self.instabilities

    def to_dict(self) -> dict[str, Any]:
        """Return raw samples and the figures derived from them, for JSON; reading needs only the raw samples."""
        return {
            "first_ns": self.first_ns,
            "rounds_ns": [list(taken) for taken in self.rounds_ns],
            "phases_ns": {name: list(taken) for name, taken in self.phases_ns.items()},
            "median_ns": self.median_ns,
            "interval_ns": list(self.interval_ns),
            "iqr_ns": self.iqr_ns,
            "percentiles_ns": self.percentiles_ns,
            "instabilities": list(self.instabilities),
        }
