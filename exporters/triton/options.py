"""The options of a package for Triton."""

import re
from dataclasses import dataclass
from pathlib import Path

from fcn_deploy.choices import Provider, TritonBackend
from fcn_deploy.errors import UsageError, check_range

MAX_INSTANCES = 64
MAX_QUEUE_DELAY_US = 10_000_000
MAX_WORKSPACE_MB = 2**20
# Names become folders, URLs and Kubernetes resources.
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,62}")
_URI = re.compile(r"[a-z][a-z0-9+.-]*://\S+")
STORAGE_PLACEHOLDER = "s3://BUCKET/PATH"


@dataclass(frozen=True)
class PackageOptions:
    """The options of a package: its source, and how it is served.

    Attributes:
        source: a bundle's directory, an ONNX file of this toolkit, or a TensorRT engine.
        output: the directory to write.
        backend: what runs the model.
        name: name of the model; None uses the source's name.
        provider: where ONNX Runtime runs; None is the CPU. Not for engines.
        instances: copies of the model that run in parallel.
        queue_delay_us: longest wait of a request for others to fill a batch, microseconds; None is 1000.
        workspace_mb: limit on TensorRT's scratch memory in MiB, for provider tensorrt.
        engine_cache: folder on the server for built engines, for provider tensorrt.
        storage_uri: where Kubernetes fetches the repository from.
        force: replace an existing package.

    Raises:
        UsageError: an option out of its bounds, or options that exclude each other.
    """

    source: Path
    output: Path = Path("triton")
    backend: TritonBackend = TritonBackend.ONNXRUNTIME
    name: str | None = None
    provider: Provider | None = None
    instances: int = 1
    queue_delay_us: int | None = None
    workspace_mb: int | None = None
    engine_cache: str | None = None
    storage_uri: str = STORAGE_PLACEHOLDER
    force: bool = False

    def __post_init__(self) -> None:
        check_range("instances", self.instances, 1, MAX_INSTANCES, option="--instances")
        if self.queue_delay_us is not None:
            check_range("queue delay (us)", self.queue_delay_us, 0, MAX_QUEUE_DELAY_US, option="--queue-delay")
        if self.workspace_mb is not None:
            check_range("workspace (MiB)", self.workspace_mb, 1, MAX_WORKSPACE_MB, option="--workspace")
        if not _NAME.fullmatch(self.model_name):
            raise UsageError(
                f"{self.model_name!r} is not a valid model name: letters, digits, _ . and -, at most 63",
                remedy="Pass another with --name.",
            )
        if not _URI.fullmatch(self.storage_uri):
            raise UsageError(f"{self.storage_uri!r} is not a URI", remedy="Pass one such as s3://bucket/folder.")
        tensorrt_only = self.workspace_mb is not None or self.engine_cache is not None
        if tensorrt_only and not (self.provider is Provider.TENSORRT and self.backend is TritonBackend.ONNXRUNTIME):
            raise UsageError(
                "--workspace and --engine-cache apply only to ONNX Runtime's TensorRT provider in Triton",
                remedy="Omit them, or pass --backend onnxruntime --provider tensorrt.",
            )

    @property
    def model_name(self) -> str:
        """The model's name for clients."""
        if self.name is not None:
            return self.name
        from fcn_deploy.artifact import model_name

        return model_name(self.source)
