from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from benchmarks.stats.comparison import Ratio, Verdict, compare_reports
from benchmarks.stats.timing import Measurement
from fcn_deploy import MeasurementError, RegressionError, UsageError
from tests.benchmarks.reports import report, row
from tests.messages import states

BEFORE = (2000.0, 2004.0, 1998.0, 2001.0, 2003.0)


def scaled(factor: float, shift: float = 1.0) -> tuple[float, ...]:
    return tuple(ms * factor + shift for ms in BEFORE)


@pytest.mark.parametrize(("after", "verdict"), [
    (scaled(1.0), Verdict.SAME),
    (scaled(1.05), Verdict.SLOWER),
    (scaled(0.95), Verdict.FASTER),
    (scaled(1.015), Verdict.SAME),  # certain, but too small to be news
    ((1700.0, 2600.0, 2100.0, 1900.0, 2500.0), Verdict.SAME),  # large, but uncertain
])  # fmt: skip
def test_verdicts(after: tuple[float, ...], verdict: Verdict) -> None:
    found = compare_reports(report(row("ort", *BEFORE)), report(row("ort", *after)))

    assert [change.verdict for change in found.changes] == [verdict]
    assert found.changes[0].ratio.value == pytest.approx(np.median(after) / 2001)


@settings(max_examples=20)
@given(st.integers(0, 2**32 - 1))
def test_a_report_never_differs_from_itself(seed: int) -> None:
    samples = np.random.default_rng(seed).normal(100, 5, 30)
    one = report(row("ort", *samples))

    (change,) = compare_reports(one, one, threshold=0.0).changes

    assert change.verdict is Verdict.SAME
    assert change.ratio.value == 1
    assert change.ratio.low <= 1 <= change.ratio.high


def test_five_percent_are_found_in_the_noise_of_a_quiet_machine() -> None:
    """Half a percent of noise, five rounds of one sample each: what the default duration gives at full size."""
    generator = np.random.default_rng(3)
    found = []
    for _ in range(40):
        before, after = generator.normal(2000, 10, 5), generator.normal(2100, 10, 5)
        changes = compare_reports(report(row("ort", *before)), report(row("ort", *after))).changes
        found.append(changes[0].verdict)

    assert found.count(Verdict.SLOWER) >= 39


def test_the_interval_of_a_ratio_agrees_with_a_second_bootstrap() -> None:
    generator = np.random.default_rng(4)
    first, second = generator.normal(100, 3, 60), generator.normal(90, 3, 60)
    ratios = [np.median(generator.choice(second, 60)) / np.median(generator.choice(first, 60)) for _ in range(4000)]

    measured, baseline = (Measurement(1, tuple((int(v * 1e6),) for v in values)) for values in (second, first))
    found = Ratio.of(measured, baseline)

    assert (found.low, found.high) == pytest.approx(tuple(np.quantile(ratios, (0.025, 0.975))), rel=0.004)


@pytest.mark.parametrize("slow", [
    (1.0, 1.9, 1.2, 2.0, 1.4, 1.0, 1.1, 1.7, 1.3, 1.0),  # other programs come and go
    (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9),  # the machine gets slower and slower
    (1.0, 1.0, 1.0, 1.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0),  # from one moment on it takes twice as long
])  # fmt: skip
def test_drift_that_moves_all_rows_moves_no_ratio(slow: tuple[float, ...]) -> None:
    """With 1 % of noise, the paired ratio is what it is without drift, and as certain; that of the medians is not."""
    noise = np.random.default_rng(5).normal(1, 0.01, (2, len(slow)))
    still, drifting = (
        [
            row(name, *(ms * kept * noise[side]))
            for side, (name, ms) in enumerate((("ort", 100.0), ("ort-plain", 250.0)))
        ]
        for kept in (np.ones(len(slow)), np.array(slow))
    )

    expected, found = (Ratio.of_rows(*rows) for rows in (still, drifting))
    unpaired = Ratio.of(*(r.measurement for r in drifting if r.measurement is not None))

    assert (found.low, found.value, found.high) == pytest.approx((expected.low, expected.value, expected.high))
    assert 0.39 < found.low < 0.4 < found.high < 0.41
    assert unpaired.high - unpaired.low > 5 * (found.high - found.low)


def test_only_rounds_of_the_same_turns_are_pairs() -> None:
    """The baseline took turns with two groups of rows; the machine was slower while the second was measured."""
    baseline = row("ort-plain", *(100.0, 101, 99, 100, 100), *(200.0, 199, 201, 200, 200))
    second = replace(row("mnn", *(100.0, 101, 99, 100, 100)), first_turn=5)
    elsewhere = replace(second, key=replace(second.key, network="FCN-16s"))

    assert Ratio.of_rows(second, baseline).value == pytest.approx(0.5, rel=0.01)
    assert Ratio.of_rows(row("pytorch", 100, 100, 100, 100, 100), baseline).value == pytest.approx(1, rel=0.01)
    assert Ratio.of_rows(elsewhere, baseline).value == pytest.approx(100 / 150, rel=0.01)


def test_a_run_that_was_interrupted_after_one_round_is_not_certain_of_its_ratio() -> None:
    """Of one pair nothing is known; the samples of that round vary by 10 %."""
    first, second = (replace(row(name), measurement=Measurement(1, (taken,))) for name, taken in (
        ("ort", (100, 105, 110)), ("ort-plain", (102, 110, 112)),
    ))  # fmt: skip

    found = Ratio.of_rows(first, second)

    assert found.low < 1 < found.high


@pytest.mark.parametrize("rounds", [5, 10])
def test_intervals_of_paired_ratios_contain_the_truth(rounds: int) -> None:
    generator, hits, runs = np.random.default_rng(6), 0, 300
    for _ in range(runs):
        drift = generator.uniform(1, 2, rounds)
        first, second = (row("x", *(ms * drift * generator.normal(1, 0.02, rounds))) for ms in (80.0, 100.0))
        found = Ratio.of_rows(first, second)
        hits += found.low <= 0.8 <= found.high

    assert 0.91 <= hits / runs <= 0.995


def test_a_slower_row_is_an_error_of_its_own() -> None:
    found = compare_reports(report(row("ort", *BEFORE)), report(row("ort", *scaled(1.1))))

    with pytest.raises(RegressionError, check=states("FCN-8s 500x500 ort cpu 1.10")) as caught:
        found.require_no_regression()
    assert caught.value.exit_code == 7


def test_a_row_that_is_gone_is_a_regression_and_a_new_one_is_not() -> None:
    found = compare_reports(
        report(row("ort", *BEFORE), row("pytorch", *BEFORE)), report(row("ort", *BEFORE), row("compile", *BEFORE))
    )

    assert [key.case for key in found.gained] == ["compile"]
    with pytest.raises(RegressionError, match="pytorch on cpu is no longer"):
        found.require_no_regression()


def test_an_unstable_row_is_no_clean_bill() -> None:
    found = compare_reports(report(row("ort", *BEFORE)), report(row("ort", 2000, 2000, 2000, 2600, 2000)))

    with pytest.raises(MeasurementError, match="unstable: FCN-8s") as caught:
        found.require_no_regression()
    assert caught.value.exit_code == 6


def test_equal_and_stable_passes() -> None:
    compare_reports(report(row("ort", *BEFORE)), report(row("ort", *BEFORE))).require_no_regression()


def test_rows_that_only_share_their_case_are_not_compared() -> None:
    with pytest.raises(UsageError, match=r"1 ort on cpu .*2 ort on cpu"):
        compare_reports(report(row("ort", *BEFORE)), report(row("ort", *BEFORE, batch=2)))


@pytest.mark.parametrize("threshold", [-0.1, 1.0, float("nan")])
def test_thresholds_out_of_their_bounds(threshold: float) -> None:
    one = report(row("ort", *BEFORE))

    with pytest.raises(UsageError, match=r"threshold .*0.*1"):
        compare_reports(one, one, threshold)
