import itertools
from collections.abc import Iterator

import msgspec
import pytest

from benchmarks.stats.timing import Measurement, Protocol, clock_overhead_ns, sample, time_once, warm_up
from fcn_deploy import UsageError
from tests.messages import states


class Clock:
    """A clock that stands still but for the calls that are timed, each of which takes the next duration."""

    def __init__(self, durations_ns: Iterator[int]) -> None:
        self.now, self.durations = 0, durations_ns

    def __call__(self) -> int:
        return self.now

    def work(self) -> None:
        self.now += next(self.durations)


def test_one_call_takes_what_the_clock_says() -> None:
    clock = Clock(iter([1234]))

    assert time_once(clock.work, clock) == 1234


def test_samples_are_taken_until_the_time_is_up_and_no_further() -> None:
    clock = Clock(itertools.count(100_000_000, 100_000_000))  # 0.1 s, 0.2 s, 0.3 s, ...

    assert sample(clock.work, 0.5, clock) == [100_000_000, 200_000_000, 300_000_000]


def test_one_sample_is_taken_however_short_the_time() -> None:
    clock = Clock(itertools.repeat(5_000_000_000))

    assert sample(clock.work, 0.01, clock) == [5_000_000_000]


def test_warm_up_goes_by_time() -> None:
    clock = Clock(itertools.repeat(300_000_000))

    assert warm_up(clock.work, 1.0, clock) == 4
    assert warm_up(clock.work, 0.0, clock) == 0


def test_the_overhead_is_the_clocks_own() -> None:
    ticks = itertools.count(0, 70)

    assert clock_overhead_ns(lambda: next(ticks)) == 70


def test_the_real_clock_costs_less_than_a_percent_of_a_millisecond() -> None:
    assert 0 < clock_overhead_ns() < 10_000


@pytest.mark.parametrize("seconds", [0.0, -1.0, 0.009, 3601.0, float("nan")])
def test_durations_out_of_their_bounds(seconds: float) -> None:
    with pytest.raises(UsageError, check=states("0.01 3600")):
        Protocol(duration_s=seconds)


def test_rounds_share_the_duration() -> None:
    assert Protocol(duration_s=10, rounds=5).round_s == 2


def test_a_short_run_is_not_warmed_up_for_longer_than_it_lasts() -> None:
    assert Protocol.of_duration(10.0) == Protocol()
    assert Protocol.of_duration(0.2) == Protocol(0.2, warmup_s=0.2, ceiling_s=0.2)


def test_figures_of_a_measurement() -> None:
    measured = Measurement(9, ((1, 2, 3), (4, 5, 6), (7, 8, 9)), {"upload": (3, 1, 2)})

    assert measured.samples_ns.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9]
    assert measured.median_ns == 5
    assert measured.iqr_ns == 4
    assert measured.percentiles_ns == {}
    assert measured.phase_medians_ns == {"upload": 2}
    assert not measured.stable


def test_raw_samples_survive_json() -> None:
    measured = Measurement(9, ((1, 2), (3,)), {"upload": (1,)})

    assert msgspec.convert(measured.to_dict(), Measurement) == measured


def test_percentiles_appear_with_enough_samples() -> None:
    measured = Measurement(1, tuple(tuple(range(i * 200, (i + 1) * 200)) for i in range(5)))

    assert measured.percentiles_ns == pytest.approx({"p90": 899.1, "p95": 949.05, "p99": 989.01})
