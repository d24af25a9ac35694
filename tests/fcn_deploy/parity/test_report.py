from dataclasses import replace

import numpy as np
import pytest

from fcn_deploy import ModelInfo, NetworkSpec, ParityError, Precision, Provenance, Variant
from fcn_deploy.parity.compare import Comparison, compare_logits
from fcn_deploy.parity.report import ParityReport, json_ready
from fcn_deploy.parity.tolerance import TIERS, tier_of
from tests.messages import missing

MAPS = np.random.default_rng(0).normal(0, 1, (1, 3, 20, 20))
GOOD = compare_logits("good", MAPS, MAPS)


def off_by(name: str, relative: float, flips: int = 0, clear: int = 0) -> Comparison:
    error = relative * GOOD.logit_range
    return replace(GOOD, input_name=name, max_abs_error=error, flips=flips, clear_flips=clear, pixels=250_000)


def report(*comparisons: Comparison, tier: str = "fp32") -> ParityReport:
    return ParityReport("PyTorch", "ONNX", TIERS[tier], comparisons)


def test_the_published_tiers() -> None:
    bounds = {t.name: (t.max_error, t.label_agreement, t.clear_flips, t.mean_iu) for t in TIERS.values()}

    assert bounds == {
        "fp32": (1e-5, 0.99999, 0, None),
        "tf32": (2e-3, 0.999, 0, None),
        "fp16": (5e-3, 0.998, 0, None),
        "bf16": (3e-2, 0.99, None, None),
        "int8": (None, None, None, 0.95),
    }


@pytest.mark.parametrize(("comparison", "failures"), [
    (off_by("x", 0.99e-5), ()),
    (off_by("x", 1.01e-5), ("max error / range 1.01e-05 (allowed: at most 1e-05)",)),
    (off_by("x", 0, flips=2), ()),
    (off_by("x", 0, flips=3), ("label agreement 0.999988 (allowed: at least 0.99999)",)),
    (replace(off_by("x", 0, flips=1), pixels=100), ()),
    (replace(off_by("x", 0, flips=2), pixels=100), ("label agreement 0.98 (allowed: at least 0.99999)",)),
    (off_by("x", 0, flips=1, clear=1), ("clear flips 1 (allowed: at most 0)",)),
    (off_by("x", float("nan")), ("max error / range nan (allowed: at most 1e-05)",)),
    (off_by("x", float("inf")), ("max error / range inf (allowed: at most 1e-05)",)),
])  # fmt: skip
def test_the_fp32_tier_on_either_side_of_its_bounds(comparison: Comparison, failures: tuple[str, ...]) -> None:
    assert TIERS["fp32"].failures(comparison) == failures


def test_int8_is_judged_by_its_maps_alone() -> None:
    passed = replace(off_by("x", 1, flips=100_000), intersections=(96, 0, 96), unions=(100, 0, 100))
    failed = replace(GOOD, input_name="y", intersections=(93, 0, 93), unions=(100, 0, 100))

    assert report(passed, tier="int8").failures == ()
    assert report(failed, tier="int8").failures == ("1 inputs: mean IU 0.93 (allowed: at least 0.95)",)
    assert report(passed, failed, tier="int8").worst.input_name == "y"


def test_int8_is_judged_on_all_inputs_together() -> None:
    """A class of ten pixels that is lost in one input would cost half of that input's mean IU."""
    small = replace(GOOD, intersections=(980, 0, 5), unions=(1000, 0, 10))
    large = replace(GOOD, intersections=(1000, 0, 990), unions=(1000, 0, 990))

    assert small.mean_iu == 0.74
    assert report(small, large, tier="int8").failures == ()


def test_the_tier_of_a_model_is_that_of_its_arithmetic_with_its_own_bound() -> None:
    info = ModelInfo(NetworkSpec(Variant.FCN8S), Provenance(), precision=Precision.INT8, min_agreement=0.9)

    assert tier_of(info) == replace(TIERS["int8"], mean_iu=0.9)
    assert tier_of(replace(info, precision=Precision.BF16, min_agreement=None)) is TIERS["bf16"]


def test_the_worst_input_is_the_one_that_fails_then_the_largest_error() -> None:
    assert report(off_by("a", 1e-7), off_by("b", 3e-7), off_by("c", 2e-7)).worst.input_name == "b"
    assert report(off_by("a", 9e-6), off_by("b", 1e-9, flips=9)).worst.input_name == "b"
    assert report(off_by("a", 1), off_by("b", float("nan"))).worst.input_name == "b"


def test_a_failed_report_raises_with_every_reason() -> None:
    failed = report(off_by("fine", 1e-7), off_by("photo.jpg", 3e-4, flips=30))

    with pytest.raises(ParityError) as caught:
        failed.require()

    lines = caught.value.problem.splitlines()
    for line, facts in zip(lines, (
        "PyTorch fp32 photo.jpg", "photo.jpg 0.0003 1e-05", "photo.jpg 0.99988 0.99999",
    ), strict=True):  # fmt: skip
        assert missing(facts, line) == []
    assert caught.value.exit_code == 5


def test_a_passed_report_says_nothing() -> None:
    passed = report(GOOD)

    passed.require()
    assert passed.passed
    assert passed.failures == ()


def test_json_has_no_infinities() -> None:
    assert json_ready({"a": [float("inf"), 1.5], "b": (float("nan"),)}) == {"a": ["inf", 1.5], "b": ["nan"]}
