"""What every way of filling a repository starts from."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from exporters.triton.options import PackageOptions
from exporters.triton.served import Batching
from fcn_deploy.bundle import Bundle
from fcn_deploy.hashing import file_sha256
from fcn_deploy.model_info import METADATA_PREFIX
from fcn_deploy.runtime.engine_file import Engine
from fcn_deploy.steps import OnStep

VERSION = "1"
_QUEUE_DELAY_US = 1000


@dataclass(frozen=True)
class Work:
    """An artifact on its way into a repository.

    Attributes:
        options: what was asked for.
        artifact: the source, opened and checked.
        repository: the directory that Triton is to be given.
        on_step: told what is being done.
    """

    options: PackageOptions
    artifact: Bundle | Engine
    repository: Path
    on_step: OnStep

    @property
    def name(self) -> str:
        """What clients call the model."""
        return self.options.model_name

    @property
    def batching(self) -> Batching | None:
        """How requests come together, up to the artifact's batch; None where that is 1."""
        batch, delay = self.artifact.input_shape[0], self.options.queue_delay_us
        return Batching(batch, _QUEUE_DELAY_US if delay is None else delay) if batch > 1 else None

    def version(self, name: str) -> Path:
        """The folder of a model's only version, made."""
        folder = self.repository / name / VERSION
        folder.mkdir(parents=True)
        return folder

    def facts(self) -> Mapping[str, str]:
        """The model's own, as in its metadata, and the hash of the file that they are of."""
        sha256 = file_sha256(self.artifact.model_path)
        return {**self.artifact.info.to_metadata(), f"{METADATA_PREFIX}model_sha256": sha256}
