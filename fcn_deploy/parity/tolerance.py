"""Tolerances of parity checks: one tier per arithmetic.

Errors are divided by the range of the reference's logits (largest minus smallest), because absolute tolerances fail
correct exports: rounding grows with the values. docs/parity.md explains how the figures were chosen.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from fcn_deploy.choices import Precision
from fcn_deploy.model_info import ModelInfo, NetworkSpec
from fcn_deploy.parity.compare import Comparison, LabelComparison, joint_mean_iu


@dataclass(frozen=True)
class Tier:
    """The bounds for artifacts of one arithmetic; figures whose bound is None are only reported.

    Attributes:
        name: the arithmetic.
        max_error: largest absolute logit error divided by the reference's logit range.
        label_agreement: smallest share of pixels with the reference's label; one pixel may always differ, since small
            maps cannot resolve the share.
        clear_flips: largest number of clear flips, pixels with another label that are not ties.
        mean_iu: smallest mean IU between the label maps of reference and candidate, over all inputs together.
    """

    name: str
    max_error: float | None
    label_agreement: float | None
    clear_flips: int | None
    mean_iu: float | None = None

    def failures(self, comparison: LabelComparison) -> tuple[str, ...]:
        """Return every bound that `comparison` breaks, with the value and the bound; nothing when it passes.

        When only labels were compared there is no error to bound.
        """
        c = comparison
        checks = (
            ("max error / range", c.relative_error if isinstance(c, Comparison) else 0.0, self.max_error, False),
            ("label agreement", c.label_agreement if c.flips > 1 else 1.0, self.label_agreement, True),
            ("clear flips", c.clear_flips, self.clear_flips, False),
        )
        return tuple(
            f"{name} {value:.6g} (allowed: at {'least' if larger_is_better else 'most'} {bound:g})"
            for name, value, bound, larger_is_better in checks
            # NaN has to fail.
            if bound is not None and not (value >= bound if larger_is_better else value <= bound)
        )

    def joint_failures(self, comparisons: Sequence[LabelComparison]) -> tuple[str, ...]:
        """Return the bound for all inputs together, if they break it."""
        found = joint_mean_iu(comparisons)
        if self.mean_iu is None or found >= self.mean_iu:
            return ()
        return (f"mean IU {found:.6g} (allowed: at least {self.mean_iu:g})",)

    def severity(self, comparison: LabelComparison) -> float:
        """Return a rank of `comparison` by the figure this tier bounds, for finding the worst of several."""
        return comparison.severity if self.mean_iu is None else 1 - comparison.mean_iu


TIERS = {
    tier.name: tier
    for tier in (
        Tier("fp32", max_error=1e-5, label_agreement=0.99999, clear_flips=0),
        Tier("tf32", max_error=2e-3, label_agreement=0.999, clear_flips=0),
        Tier("fp16", max_error=5e-3, label_agreement=0.998, clear_flips=0),
        Tier("bf16", max_error=3e-2, label_agreement=0.99, clear_flips=None),
        Tier("int8", max_error=None, label_agreement=None, clear_flips=None, mean_iu=0.95),
    )
}


# Labels of random weights depend on margins that 8 bits cannot keep. The error can be bounded: on photos it is 0.012 to
# 0.025 of the range.
UNTRAINED_INT8 = Tier("int8, random weights", max_error=5e-2, label_agreement=None, clear_flips=None)


def tier_of(info: ModelInfo) -> Tier:
    """Return the tier of a model's arithmetic, with the smallest mean IU that its export accepted."""
    if info.precision is Precision.INT8:
        least = info.min_agreement
        return UNTRAINED_INT8 if least is None else replace(TIERS["int8"], mean_iu=least)
    tier = TIERS[info.precision]
    if info.precision is Precision.FP32 or isinstance(info.network, NetworkSpec) or not info.provenance.untrained:
        return tier
    # Of other networks than FCNs, too, ties between random scores are common: the error is bounded as strictly.
    return replace(tier, name=f"{tier.name}, random weights", label_agreement=None)
