"""What `predict` is asked for."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.choices import EngineName, OutputFormat, Provider
from fcn_deploy.errors import UsageError

# What fsspec takes for an address: `s3://bucket/folder`, `memory://folder`.
URL_MARK = "://"


@dataclass(frozen=True)
class PredictOptions:
    """How photos are segmented, and where the results go.

    Attributes:
        output: directory of the results, made if needed; or an address that fsspec knows, such as `s3://bucket/labels`.
        keep_aspect: pad the photo to the input's shape with the mean colour instead of stretching it.
        provider: where ONNX Runtime runs.
        output_format: what is written for each photo.
        engine: what runs the stages.
        address: of the Ray cluster; None starts one on this machine for the time it takes.

    Raises:
        UsageError: an address without the engine it is for, or a package that is not installed.
    """

    output: Path | str = Path("predictions")
    keep_aspect: bool = False
    provider: Provider = Provider.CPU
    output_format: OutputFormat = OutputFormat.PNG
    engine: EngineName = EngineName.LOCAL
    address: str | None = None

    def __post_init__(self) -> None:
        if self.address is not None and self.engine is not EngineName.RAY:
            raise UsageError(
                f"address {self.address} is of a Ray cluster; the engine is {self.engine}",
                remedy="Pass --engine ray, or leave --address out.",
            )
        if self.engine is EngineName.RAY:
            _require("ray", extra="ray", purpose="--engine ray")
        if self.output_format is OutputFormat.PARQUET:
            _require("pyarrow", extra="parquet", purpose="--output-format parquet")

    @property
    def remote(self) -> bool:
        """Whether the results go to an address that fsspec opens, not to a directory."""
        return URL_MARK in str(self.output)


def _require(package: str, *, extra: str, purpose: str) -> None:
    if importlib.util.find_spec(package) is None:
        raise UsageError(
            f"{purpose} needs {package}, which is not installed",
            remedy=f"pip install 'fcn-deploy[{extra}]', or choose another.",
        )
