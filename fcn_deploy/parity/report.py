"""The outcome of a parity check over several inputs."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from fcn_deploy.errors import ParityError
from fcn_deploy.parity.compare import LabelComparison, joint_mean_iu
from fcn_deploy.parity.tolerance import Tier

_REMEDY = (
    "Run `fcn-deploy verify --exact` to see whether PyTorch or the artifact is off; export with --optimize none to see "
    "whether the exporter or the simplifier is the cause."
)
_REDUCED_REMEDY = (
    "Run `fcn-deploy verify --layers` (after an export with --no-verify) to see every layer; or export with a "
    "wider --precision."
)


@dataclass(frozen=True)
class ExactErrors:
    """Errors of reference and candidate against the network in float64, for one input: max error / logit range."""

    input_name: str
    reference: float
    candidate: float


@dataclass(frozen=True)
class ParityReport:
    """Comparisons of a candidate with its reference, and the tier that bounds them.

    Attributes:
        reference: runtime of the reference.
        candidate: runtime of the artifact.
        tier: the bounds.
        comparisons: one per input.
        exact: errors against float64, one per input; empty unless requested.
        undecided: inputs by which nothing can be judged: rounding alone changes the logits by more than the bound.
    """

    reference: str
    candidate: str
    tier: Tier
    comparisons: tuple[LabelComparison, ...]
    exact: tuple[ExactErrors, ...] = ()
    undecided: tuple[str, ...] = ()

    @property
    def judged(self) -> tuple[LabelComparison, ...]:
        """The comparisons that count."""
        return tuple(c for c in self.comparisons if c.input_name not in self.undecided)

    @property
    def failures(self) -> tuple[str, ...]:
        """Every broken bound, with the input that broke it."""
        single = [f"{c.input_name}: {problem}" for c in self.judged for problem in self.tier.failures(c)]
        joint = [f"{len(self.judged)} inputs: {problem}" for problem in self.tier.joint_failures(self.judged)]
        return (*single, *joint)

    @property
    def label_agreement(self) -> float:
        """Share of the pixels of all inputs with the same label, 0..1."""
        return 1 - sum(c.flips for c in self.comparisons) / sum(c.pixels for c in self.comparisons)

    @property
    def mean_iu(self) -> float:
        """Mean IU between the labels of reference and candidate, over all inputs together."""
        return joint_mean_iu(self.comparisons)

    @property
    def passed(self) -> bool:
        """Whether every input keeps every bound of the tier."""
        return not self.failures

    @property
    def worst(self) -> LabelComparison:
        """The comparison that fails, or else the most severe one; NaN counts as most severe."""
        return max(self.judged, key=self._badness)

    def _badness(self, comparison: LabelComparison) -> tuple[bool, bool, float]:
        severity = self.tier.severity(comparison)
        return bool(self.tier.failures(comparison)), math.isnan(severity), severity

    def require(self, first_wrong: str = "") -> None:
        """Raise unless the check passed.

        Raises:
            ParityError: the check failed; names the worst input, every broken bound, and `first_wrong`, a sentence.
        """
        if not self.passed:
            raise ParityError(
                f"{self.candidate} differs from {self.reference} "
                f"(tier {self.tier.name}, worst input {self.worst.input_name}):\n  "
                + "\n  ".join(reason for reason in (*self.failures, first_wrong) if reason),
                remedy=_REMEDY if self.tier.name == "fp32" else _REDUCED_REMEDY,
            )

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON; infinities and NaN, which JSON lacks, become strings."""
        report: dict[str, Any] = {
            "passed": self.passed,
            "reference": self.reference,
            "candidate": self.candidate,
            "tier": asdict(self.tier),
            "worst_input": self.worst.input_name,
            "failures": list(self.failures),
            "comparisons": [c.to_dict() for c in self.comparisons],
            "exact": [asdict(e) for e in self.exact],
            "undecided": list(self.undecided),
        }
        return {key: json_ready(value) for key, value in report.items()}


def json_ready(value: Any) -> Any:
    """Return `value` with infinities and NaN, which JSON lacks, as strings."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, Mapping):
        return {key: json_ready(item) for key, item in value.items()}
    return [json_ready(item) for item in value] if isinstance(value, list | tuple) else value
