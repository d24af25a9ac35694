"""What counts as equal: one tier per arithmetic, chosen and written down rather than guessed per run.

Errors are measured against the range of the reference's logits (largest less smallest), because absolute tolerances
fail correct exports: rounding grows with the values. docs/parity.md says how the figures were chosen.
"""

from dataclasses import dataclass

from fcn_deploy.parity.compare import Comparison, LabelComparison


@dataclass(frozen=True)
class Tier:
    """The bounds an artifact of one arithmetic has to keep; None means reported but not judged.

    Attributes:
        name: the arithmetic.
        max_error: largest absolute logit error over the reference's logit range.
        label_agreement: smallest share of pixels with the reference's label; one pixel may always differ, since small
            maps cannot resolve the share.
        clear_flips: most pixels whose label changed although the reference was sure of it.
        mean_iu: smallest mean IU between the two label maps.
    """

    name: str
    max_error: float | None
    label_agreement: float | None
    clear_flips: int | None
    mean_iu: float | None = None

    def failures(self, comparison: LabelComparison) -> tuple[str, ...]:
        """Every bound that `comparison` breaks, with the value and the bound; empty when it passes.

        Where only labels were compared there is no error to judge.
        """
        c = comparison
        checks = (
            ("max error / range", c.relative_error if isinstance(c, Comparison) else 0.0, self.max_error, False),
            ("label agreement", c.label_agreement if c.flips > 1 else 1.0, self.label_agreement, True),
            ("clear flips", c.clear_flips, self.clear_flips, False),
            ("mean IU", c.mean_iu, self.mean_iu, True),
        )
        return tuple(
            f"{name} {value:.6g} is not {'at least' if larger_is_better else 'at most'} {bound:g}"
            for name, value, bound, larger_is_better in checks
            # Written so that NaN fails.
            if bound is not None and not (value >= bound if larger_is_better else value <= bound)
        )


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
