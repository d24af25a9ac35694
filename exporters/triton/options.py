"""The options of a package for Triton, and the commands that serve it."""

import re
import shlex
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
    """What is packaged, and how it is to be served.

    Attributes:
        source: a bundle's directory, an ONNX file of this toolkit, or a TensorRT engine.
        output: the directory to write.
        backend: what runs the model.
        name: of the model; None takes the source's name.
        provider: where ONNX Runtime runs; None is the CPU. Not for engines.
        instances: copies of the model that run at once.
        queue_delay_us: how long a request may wait for others to fill a batch with, microseconds; None is 1000.
        workspace_mb: limit on TensorRT's scratch memory in MiB, for provider tensorrt.
        engine_cache: folder on the server where TensorRT keeps what it built, for provider tensorrt.
        storage_uri: where Kubernetes fetches the repository from.
        force: replace an existing package.

    Raises:
        UsageError: an option out of its bounds, or options that do not go together.
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
                f"{self.model_name!r} is no name for a model: letters, digits, _ . and -, at most 63",
                remedy="Pass another with --name.",
            )
        if not _URI.fullmatch(self.storage_uri):
            raise UsageError(f"{self.storage_uri!r} is no URI", remedy="Pass one such as s3://bucket/folder.")
        tensorrt_only = self.workspace_mb is not None or self.engine_cache is not None
        if tensorrt_only and not (self.provider is Provider.TENSORRT and self.backend is TritonBackend.ONNXRUNTIME):
            raise UsageError(
                "--workspace and --engine-cache are for ONNX Runtime's TensorRT provider in Triton",
                remedy="Leave them out, or pass --backend onnxruntime --provider tensorrt.",
            )

    @property
    def model_name(self) -> str:
        """The model's name for clients."""
        if self.name is not None:
            return self.name
        from fcn_deploy.artifact import model_name

        return model_name(self.source)


# A release whose Python, 3.12, runs this toolkit.
IMAGE = "nvcr.io/nvidia/tritonserver:25.08-py3"
_PORTS = "-p 8000:8000 -p 8001:8001"
_INSTALL = "pip install fcn-deploy"


def commands(output: Path, backend: TritonBackend, *, gpu: bool) -> dict[str, str]:
    """Return shell commands by purpose: `server`, `container`, `client`."""
    repository = shlex.quote(str(output / "repository"))
    mounted = shlex.quote(f"{(output / 'repository').absolute()}:/models:ro")
    device = "--gpus all " if gpu else ""
    serve = "tritonserver --model-repository /models"
    inside = f'sh -c "{_INSTALL} && {serve}"' if backend is TritonBackend.PYTHON else serve
    return {
        "server": f"tritonserver --model-repository {repository}",
        "container": f"docker run --rm {device}{_PORTS} -v {mounted} {IMAGE} {inside}",
        "client": f"python {shlex.quote(str(output / 'client.py'))} photo.jpg",
    }
