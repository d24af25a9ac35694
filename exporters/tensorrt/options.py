"""The options of an engine's build."""

from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.artifact import is_engine
from fcn_deploy.artifact.engine import PLAN_SUFFIX, plan_beside
from fcn_deploy.choices import FlavourName, Precision
from fcn_deploy.errors import UsageError, check_range

MAX_WORKSPACE_MB = 1 << 20


@dataclass(frozen=True)
class EngineOptions:
    """The source, the target and the output of a build.

    Attributes:
        source: a bundle's directory, or an ONNX file of this toolkit.
        output: the plan; None writes `<source>.plan` beside the source.
        precision: the arithmetic; None keeps the source's own.
        calibration: images on which a float32 source is observed before it is converted; empty uses the
            bundled photo.
        flavour: the TensorRT product; None uses the installed one, TensorRT before TensorRT-RTX.
        capabilities: compute capabilities to build for ahead of time, e.g. `8.9`: TensorRT-RTX only.
        workspace_mb: limit on scratch memory in MiB; None leaves it to TensorRT.
        timing_cache: file of the builder's timings: TensorRT only.
        force: replace another existing engine.

    Raises:
        UsageError: an option out of its bounds.
    """

    source: Path
    output: Path | None = None
    precision: Precision | None = None
    calibration: tuple[Path, ...] = ()
    flavour: FlavourName | None = None
    capabilities: tuple[str, ...] = ()
    workspace_mb: int | None = None
    timing_cache: Path | None = None
    force: bool = False

    def __post_init__(self) -> None:
        if self.workspace_mb is not None:
            check_range("workspace (MiB)", self.workspace_mb, 1, MAX_WORKSPACE_MB, option="--workspace")
        if not is_engine(self.plan_path):
            raise UsageError(f"{self.plan_path} does not end in {PLAN_SUFFIX}", remedy=f"Name it *{PLAN_SUFFIX}.")

    @property
    def plan_path(self) -> Path:
        """The path of the plan."""
        return self.output if self.output is not None else plan_beside(self.source)
