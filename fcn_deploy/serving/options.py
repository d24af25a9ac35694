"""How a server listens and what it takes at most."""

import importlib.util
import re
from dataclasses import dataclass

from fcn_deploy.choices import Provider
from fcn_deploy.errors import UsageError

_HIGHEST_PORT = 65_535
_LONGEST_S = 3_600
_LONGEST_QUEUE = 1_000
_LARGEST_PHOTO_MB = 1_024
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")
_NOT_IN_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class ServeOptions:
    """Where a server listens, and its bounds.

    Attributes:
        host: address to listen on; 0.0.0.0 lets in everyone who reaches this machine.
        http_port: of HTTP; 0 takes any free port.
        grpc_port: of gRPC; 0 takes any free port.
        name: the model's name in the protocol; None takes the artifact's.
        provider: where ONNX Runtime runs.
        keep_aspect: pad dropped photos to the input's shape instead of stretching them.
        queue_size: requests that may wait for the runtime; one more is refused with 503 (gRPC: UNAVAILABLE).
        max_photo_mb: largest photo, in millions of bytes of file.
        client_timeout_s: seconds a client may take for a request's head, for its body, and to read the answer.
        drain_s: seconds that accepted requests may take after a signal to stop.

    Raises:
        UsageError: a value out of its bounds.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    name: str | None = None
    provider: Provider = Provider.CPU
    keep_aspect: bool = False
    queue_size: int = 32
    max_photo_mb: int = 32
    client_timeout_s: float = 30.0
    drain_s: float = 30.0

    def __post_init__(self) -> None:
        _check("HTTP port", self.http_port, (0, _HIGHEST_PORT), "--http-port")
        _check("gRPC port", self.grpc_port, (0, _HIGHEST_PORT), "--grpc-port")
        _check("queue size", self.queue_size, (1, _LONGEST_QUEUE), "--queue-size")
        _check("photo size in MB", self.max_photo_mb, (1, _LARGEST_PHOTO_MB), "--max-photo-mb")
        _check("client timeout in seconds", self.client_timeout_s, (0.1, _LONGEST_S), "--client-timeout")
        _check("drain time in seconds", self.drain_s, (0, _LONGEST_S), "--drain")
        if self.http_port and self.http_port == self.grpc_port:
            raise UsageError(f"port {self.http_port} is asked for twice", remedy="Give HTTP and gRPC a port each.")
        if self.name is not None and not _NAME.fullmatch(self.name):
            raise UsageError(
                f"model name {self.name!r} has characters that addresses do not have",
                remedy="Use up to 100 letters, digits, and . _ - after a letter or digit.",
            )


def _check(what: str, value: float, bounds: tuple[float, float], option: str) -> None:
    if not bounds[0] <= value <= bounds[1]:
        raise UsageError(
            f"{what} {value:g} is not between {bounds[0]:g} and {bounds[1]:g}",
            remedy=f"Pass {option} within these bounds.",
        )


def name_from(text: str) -> str:
    """A model name out of a file's: every run of characters that addresses do not have becomes one underscore."""
    return _NOT_IN_NAMES.sub("_", text).lstrip("_.-")[:100] or "model"


def require_serving() -> None:
    """Check that the server's library is installed, without loading it.

    Raises:
        UsageError: it is not; names the extra that brings it.
    """
    if importlib.util.find_spec("kserve") is None:
        raise UsageError("serving needs kserve, which is not installed", remedy="pip install 'fcn-deploy[serve]'")
