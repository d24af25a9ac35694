"""Clients: tritonclient's two, and plain HTTP for requests that tritonclient would not send."""

import contextlib
import http.client
import json
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

import numpy as np
import numpy.typing as npt
import tritonclient.grpc
import tritonclient.http

import fcn_deploy as fd

Pixels = npt.NDArray[np.uint8]
INFER = "/v2/models/net/infer"


def noise(count: int = 1, size: int = 96, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (count, size, size, 3), dtype=np.uint8)


@contextlib.contextmanager
def http_client(server: fd.Server) -> Iterator[Any]:
    with tritonclient.http.InferenceServerClient(address(server)) as client:
        yield client


@contextlib.contextmanager
def grpc_client(server: fd.Server) -> Iterator[Any]:
    with tritonclient.grpc.InferenceServerClient(server.listening.grpc_url) as client:
        yield client


def address(server: fd.Server) -> str:
    return urlsplit(server.listening.http_url).netloc


def http_infer(client: Any, pixels: Pixels, *, binary: bool = True) -> Pixels:
    given = tritonclient.http.InferInput("pixels", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels, binary_data=binary)
    wanted = tritonclient.http.InferRequestedOutput("labels", binary_data=binary)
    return np.asarray(client.infer("net", [given], outputs=[wanted]).as_numpy("labels"))


def grpc_infer(client: Any, pixels: Pixels) -> Pixels:
    given = tritonclient.grpc.InferInput("pixels", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels)
    return np.asarray(client.infer("net", [given]).as_numpy("labels"))


def connect(server: fd.Server, timeout_s: float = 20) -> socket.socket:
    url = urlsplit(server.listening.http_url)
    return socket.create_connection((url.hostname or "", url.port or 0), timeout_s)


def call(
    server: fd.Server, path: str, body: bytes | None = None, headers: dict[str, str] | None = None, method: str = ""
) -> tuple[int, Any, dict[str, str]]:
    """Status, JSON and headers of one request."""
    connection = http.client.HTTPConnection(address(server), timeout=20)
    try:
        connection.request(method or ("GET" if body is None else "POST"), path, body, headers or {})
        response = connection.getresponse()
        return response.status, json.loads(response.read()), {k.lower(): v for k, v in response.getheaders()}
    finally:
        connection.close()


def binary_request(pixels: Pixels, **changed: Any) -> tuple[bytes, dict[str, str]]:
    """A body with a binary tensor, and its headers; `changed` replaces members of its input."""
    tensor = {
        "name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8",
        "parameters": {"binary_data_size": pixels.size},
    }  # fmt: skip
    head = json.dumps({"inputs": [tensor | changed], "parameters": {"binary_data_output": True}}).encode()
    return head + pixels.tobytes(), {"Inference-Header-Content-Length": str(len(head))}


def json_request(pixels: Pixels, **changed: Any) -> bytes:
    """A body that is all JSON; `changed` replaces members of its input."""
    tensor = {"name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8", "data": pixels.ravel().tolist()}
    return json.dumps({"inputs": [tensor | changed]}).encode()


def wait_until(condition: Callable[[], object], timeout_s: float = 20) -> None:
    """Wait until a condition holds, and fail when it does not in time."""
    end = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < end, "the condition did not hold in time"
        time.sleep(0.005)


def wait_for_metric(server: fd.Server, name: str, value: int) -> None:
    wait_until(lambda: f"fcn_deploy_{name} {value}.0" in exposed(server))


def read_until_closed(connection: socket.socket) -> bytes:
    found = b""
    with contextlib.suppress(ConnectionResetError):
        while part := connection.recv(65536):
            found += part
    return found


def exposed(server: fd.Server) -> str:
    """The metrics' text."""
    connection = http.client.HTTPConnection(address(server), timeout=20)
    try:
        connection.request("GET", "/metrics")
        return connection.getresponse().read().decode()
    finally:
        connection.close()
