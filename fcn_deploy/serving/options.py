"""Where a server listens, and the limits of its clients."""

import functools
import ipaddress
import re
import socket
from dataclasses import dataclass

from fcn_deploy.choices import MAX_MEGAPIXELS, Provider
from fcn_deploy.errors import UsageError, check_range

_MAX_PORT = 65_535
_MAX_SECONDS = 3_600
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.-]*[A-Za-z0-9])?|[0-9a-fA-F:.]+")
_LOOPBACK_NAMES = ("localhost", "127.0.0.1", "::1")
_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}")


@dataclass(frozen=True)
class ServeOptions:
    """Where a server listens, and its bounds.

    Attributes:
        host: address to listen on; 0.0.0.0 accepts connections from every network.
        http_port: port for HTTP; 0 uses any free port.
        grpc_port: port for gRPC; 0 uses any free port.
        name: the model's name in the protocol; None uses the artifact's.
        provider: where ONNX Runtime runs.
        keep_aspect: pad photos sent to `/segment` to the input's shape instead of stretching them.
        queue_size: requests that may wait for the model; further ones are refused with 503 (gRPC: UNAVAILABLE).
        max_photo_mb: largest photo, in millions of bytes of file.
        max_photo_mpx: largest photo, in millions of pixels; a decoded one takes up to 16 bytes per pixel.
        allowed_hosts: names that clients may ask for in their `Host` header, besides those of this machine's loopback
            interface and `host`; empty allows any name where `host` is not a loopback address.
        client_timeout_s: seconds a client has to send a request's head, again to send its body, and again to read
            the answer.
        drain_s: seconds that accepted requests may take after a signal to stop.
        use_cache: open a large model from its prepared session on a CPU, which the first run on a machine writes.

    Raises:
        UsageError: a value is out of its bounds.
    """

    host: str = "127.0.0.1"
    http_port: int = 8000
    grpc_port: int = 8001
    name: str | None = None
    provider: Provider = Provider.CPU
    keep_aspect: bool = False
    queue_size: int = 32
    max_photo_mb: int = 32
    max_photo_mpx: int = 25
    allowed_hosts: tuple[str, ...] = ()
    client_timeout_s: float = 30.0
    drain_s: float = 30.0
    use_cache: bool = True

    def __post_init__(self) -> None:
        check_range("HTTP port", self.http_port, 0, _MAX_PORT, option="--http-port")
        check_range("gRPC port", self.grpc_port, 0, _MAX_PORT, option="--grpc-port")
        check_range("queue size", self.queue_size, 1, 1_000, option="--queue-size")
        check_range("photo size in MB", self.max_photo_mb, 1, 1_024, option="--max-photo-mb")
        check_range("photo size in Mpx", self.max_photo_mpx, 1, MAX_MEGAPIXELS, option="--max-photo-mpx")
        check_range("client timeout in seconds", self.client_timeout_s, 0.1, _MAX_SECONDS, option="--client-timeout")
        check_range("drain time in seconds", self.drain_s, 0, _MAX_SECONDS, option="--drain")
        wrong = [name for name in self.allowed_hosts if not _HOST_NAME.fullmatch(name)]
        if wrong:
            raise UsageError(
                f"allowed host {wrong[0]!r} is not a host name or an address",
                remedy="Pass --allow-host a name without scheme, port and brackets, such as server.example or ::1.",
            )
        if self.http_port and self.http_port == self.grpc_port:
            raise UsageError(
                f"HTTP and gRPC cannot share port {self.http_port}", remedy="Give HTTP and gRPC different ports."
            )
        if self.name is not None and not _MODEL_NAME.fullmatch(self.name):
            raise UsageError(
                f"model name {self.name!r} has characters that are not allowed in a URL path",
                remedy="Use up to 100 letters, digits, and . _ - after a letter or digit.",
            )

    def allows_host(self, name: str) -> bool:
        """Return whether a client may ask for the server under a host name.

        On a loopback address only known names are allowed: a web page that makes its own name point to 127.0.0.1 (DNS
        rebinding) could otherwise use the server through the visitor's browser.
        """
        known = {*_LOOPBACK_NAMES, self.host.lower(), *(host.lower() for host in self.allowed_hosts)}
        return name.lower().rstrip(".") in known or not (self.allowed_hosts or _is_loopback(self.host))


@functools.cache
def _is_loopback(host: str) -> bool:
    """Return whether a name or an address, such as `127.1`, leads to this machine alone."""
    try:
        address = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)[0][4][0]
        return ipaddress.ip_address(address).is_loopback
    except (OSError, ValueError):
        return False
