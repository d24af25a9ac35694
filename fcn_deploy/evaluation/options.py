"""What an evaluation is told; importing this loads no runtime."""

from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fcn_deploy.choices import Provider
from fcn_deploy.errors import UsageError

MAX_WORST = 100


class Against(StrEnum):
    """What else labels the same photos."""

    PYTORCH = "pytorch"  # the network the artifact was exported from, in float32, on the CPU


@dataclass(frozen=True)
class EvaluateOptions:
    """How an artifact is scored, and where the results go.

    Attributes:
        output: directory of `evaluation.json`, the journal and the page, made if needed.
        keep_aspect: pad photos to the input's shape with the mean colour instead of stretching them.
        provider: where ONNX Runtime runs the artifact.
        against: what else labels the same photos, to tell the accuracy lost in deployment; None scores the artifact
            alone.
        checkpoint: the checkpoint the artifact was exported from; for `against`, given exactly when there was one.
        worst: how many of the worst images the page shows, 0 to 100.
        limit: score only the first so many images; None scores all.
        page: whether to write the page; None writes it where Jinja is installed.

    Raises:
        UsageError: a value out of its bounds, or a checkpoint without a use.
    """

    output: Path = Path("evaluation")
    keep_aspect: bool = False
    provider: Provider = Provider.CPU
    against: Against | None = None
    checkpoint: Path | None = None
    worst: int = 8
    limit: int | None = None
    page: bool | None = None

    def __post_init__(self) -> None:
        if self.checkpoint is not None and self.against is None:
            raise UsageError(
                "a checkpoint is given, and nothing to do with it",
                remedy="Add --against pytorch, or leave --checkpoint out.",
            )
        if not 0 <= self.worst <= MAX_WORST:
            raise UsageError(
                f"{self.worst} worst images: 0 to {MAX_WORST} fit a page", remedy="Pass a --worst within these bounds."
            )
        if self.limit is not None and self.limit < 1:
            raise UsageError(f"limit {self.limit} is below 1", remedy="Pass at least one image, or leave --limit out.")
