"""What is measured on a GPU: bundles, the most important first, and the rows of each."""

from collections.abc import Sequence
from dataclasses import dataclass

from benchmarks.cases import CASES, Case
from fcn_deploy.geometry import Variant
from fcn_deploy.model_info import Precision
from fcn_deploy.runtime.provider import Provider

FP32, FP16, BF16 = Precision.FP32, Precision.FP16, Precision.BF16

# The same options for the plain graph and for ours: (row of the plain graph, ours).
PAIRS = (
    ("ort-plain-half", "ort"),
    ("ort-plain-half-nhwc", "ort-nhwc"),
    ("ort-plain-half-graph", "ort-graph"),
    ("ort-plain-half-nhwc-graph", "ort-nhwc-graph"),
)
END_TO_END = ("ort-e2e", "ort-graph-e2e", "ort-nhwc-graph-e2e")
_FLOAT = (
    "pytorch", "pytorch-tf32", "compile", "ort-plain", "ort-simplified", "ort", "ort-tf32", "ort-nhwc", "ort-graph",
)  # fmt: skip
_HALF = ("pytorch-fp16", "compile-fp16", *(row for pair in PAIRS for row in pair))
_LABELS = ("session-run", "session-run-e2e", "pytorch-e2e", "pytorch-fp16-e2e", *END_TO_END, "ort-nhwc-graph")
_FEW_FLOAT = ("pytorch", "ort-plain", "ort-simplified", "ort")
_FEW_HALF = ("pytorch-fp16", "ort-plain-half-nhwc-graph", "ort-nhwc-graph")
_BF16 = ("ort-plain-half", "ort", "ort-plain-half-graph", "ort-graph")
_FEW_LABELS = ("session-run-e2e", "ort-e2e", "ort-graph-e2e")


@dataclass(frozen=True)
class Entry:
    """One bundle and its rows.

    Attributes:
        variant: which FCN.
        precision: what the bundle computes in.
        rows: names of cases.
        batch: images per run.
        labels: takes uint8 pixels and gives labels, instead of float images and logits.
    """

    variant: Variant
    precision: Precision
    rows: tuple[str, ...]
    batch: int = 1
    labels: bool = False

    def __str__(self) -> str:
        ends = ", pixels to labels" if self.labels else ""
        return f"FCN-{self.variant} {self.precision}, batch {self.batch}{ends}"

    @property
    def name(self) -> str:
        """For files, e.g. `fcn8s-fp16-b1-labels`."""
        return f"fcn{self.variant}-{self.precision}-b{self.batch}{'-labels' if self.labels else ''}"

    def cases(self, provider: Provider) -> tuple[Case, ...]:
        """The rows that `provider` has."""
        return tuple(case for case in CASES if case.name in self.rows and provider in case.providers)


PLAN: Sequence[Entry] = (
    Entry(Variant.FCN8S, FP16, _HALF),
    Entry(Variant.FCN8S, FP16, _LABELS, labels=True),
    Entry(Variant.FCN8S, FP16, _FEW_HALF, batch=16),
    Entry(Variant.FCN8S, FP32, _FLOAT),
    Entry(Variant.FCN32S, FP32, _FEW_FLOAT),
    Entry(Variant.FCN16S, FP32, _FEW_FLOAT),
    Entry(Variant.FCN8S, BF16, _BF16),
    Entry(Variant.FCN32S, FP16, _FEW_HALF),
    Entry(Variant.FCN16S, FP16, _FEW_HALF),
    Entry(Variant.FCN8S, FP16, _FEW_HALF, batch=4),
    Entry(Variant.FCN8S, FP16, _FEW_HALF, batch=2),
    Entry(Variant.FCN8S, FP16, _FEW_HALF, batch=8),
    *(Entry(variant, BF16, _BF16[:2]) for variant in (Variant.FCN32S, Variant.FCN16S)),
    *(Entry(variant, FP16, _FEW_LABELS, labels=True) for variant in (Variant.FCN32S, Variant.FCN16S)),
    *(Entry(variant, p, _FEW_LABELS[1:], labels=True) for p in (FP32, BF16) for variant in Variant),
)
