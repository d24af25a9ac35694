"""The addresses a server listens at."""

import errno
import socket
from dataclasses import dataclass
from typing import Any

from fcn_deploy.errors import UsageError
from fcn_deploy.serving.tensors import Interface

_BACKLOG = 512


@dataclass(frozen=True)
class Listening:
    """A server that is ready.

    Attributes:
        name: of the model.
        description: its network and weights.
        runtime: what runs it.
        untrained: whether its labels mean nothing.
        interface: what it takes and gives.
        host: address it listens on.
        http_port: of HTTP.
        grpc_port: of gRPC.
    """

    name: str
    description: str
    runtime: str
    untrained: bool
    interface: Interface
    host: str
    http_port: int
    grpc_port: int

    @property
    def http_url(self) -> str:
        """Where the page is, and below which everything else."""
        return f"http://{joined(self.host, self.http_port)}"

    @property
    def grpc_url(self) -> str:
        """What a gRPC client takes."""
        return joined(self.host, self.grpc_port)

    @property
    def infer_url(self) -> str:
        """Where HTTP clients post tensors."""
        return f"{self.http_url}/v2/models/{self.name}/infer"

    def to_dict(self) -> dict[str, Any]:
        """Every fact, for JSON."""
        return {
            "name": self.name,
            "description": self.description,
            "runtime": self.runtime,
            "untrained": self.untrained,
            "inputs": self.interface.inputs,
            "outputs": self.interface.outputs,
            "max_batch": self.interface.batch,
            "http": self.http_url,
            "grpc": self.grpc_url,
        }


def joined(host: str, port: int) -> str:
    """`host:port`, with brackets around an IPv6 address."""
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


def listen(host: str, port: int, option: str) -> socket.socket:
    """A socket that accepts connections.

    Raises:
        UsageError: the address is none of this machine's, the port is taken, or it may not be used.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _unusable(host, port, error, "Pass --host with an address of this machine.") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        taken = error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = f"Pass another {option}, or 0 for any that is free." if taken else "Pass another --host."
        raise _unusable(host, port, error, remedy) from error
    return opened


def _unusable(host: str, port: int, error: OSError, remedy: str) -> UsageError:
    return UsageError(f"cannot listen on {joined(host, port)}: {error.strerror}", remedy=remedy)
