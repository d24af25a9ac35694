"""Clients that each keep one connection and ask a server the same thing again and again."""

import contextlib
import http.client
import json
from collections.abc import Callable, Iterator
from http import HTTPStatus
from typing import Any

import numpy as np
import tritonclient.grpc
import tritonclient.http

from fcn_deploy.images import Pixels
from fcn_deploy.serving.wire import JSON_LENGTH_HEADER

# Labels come in one window; otherwise gRPC's first 64 KB are acknowledged before the rest is sent.
CHANNEL = [
    ("grpc.http2.lookahead_bytes", 4_000_000),
    ("grpc.max_send_message_length", -1),
    ("grpc.max_receive_message_length", -1),
]
_US_PER_MS = 1e3

# Sends one request; returns what its run took, ms.
Ask = Callable[[], float]


@contextlib.contextmanager
def plain_asker(server: dict[str, Any], pixels: Pixels) -> Iterator[Ask]:
    """Requests over HTTP from the standard library's client, which takes little time of its own."""
    connection = http.client.HTTPConnection(server["http"].removeprefix("http://"))

    def ask() -> float:
        size = {"binary_data_size": pixels.nbytes}
        given = {"name": "pixels", "shape": pixels.shape, "datatype": "UINT8", "parameters": size}
        head = json.dumps({"inputs": [given], "parameters": {"binary_data_output": True}}).encode()
        headers = {JSON_LENGTH_HEADER: str(len(head))}
        connection.request("POST", f"/v2/models/{server['name']}/infer", head + pixels.tobytes(), headers)
        answer = connection.getresponse()
        content = answer.read()
        if answer.status != HTTPStatus.OK:
            raise RuntimeError(f"{answer.status}: {content[:200]!r}")
        end = int(answer.headers[JSON_LENGTH_HEADER])
        _check(np.frombuffer(content, np.uint8, offset=end).reshape(pixels.shape[:-1]), pixels)
        return float(json.loads(content[:end])["parameters"]["run_us"]) / _US_PER_MS

    with contextlib.closing(connection):
        yield ask


def http_asker(server: dict[str, Any], pixels: Pixels) -> Ask:
    """Requests over HTTP from tritonclient, tensors as bytes."""
    client = tritonclient.http.InferenceServerClient(server["http"].removeprefix("http://"))

    def ask() -> float:
        given = tritonclient.http.InferInput("pixels", list(pixels.shape), "UINT8")
        given.set_data_from_numpy(pixels)
        result = client.infer(server["name"], [given])
        _check(result.as_numpy("labels"), pixels)
        return float(result.get_response()["parameters"]["run_us"]) / _US_PER_MS

    return ask


def grpc_asker(server: dict[str, Any], pixels: Pixels) -> Ask:
    """Requests over gRPC from tritonclient, tensors as bytes."""
    client = tritonclient.grpc.InferenceServerClient(server["grpc"], channel_args=CHANNEL)

    def ask() -> float:
        given = tritonclient.grpc.InferInput("pixels", list(pixels.shape), "UINT8")
        given.set_data_from_numpy(pixels)
        result = client.infer(server["name"], [given])
        _check(result.as_numpy("labels"), pixels)
        return float(result.get_response().parameters["run_us"].int64_param) / _US_PER_MS

    return ask


def _check(labels: Any, pixels: Pixels) -> None:
    if labels.shape != pixels.shape[:-1]:
        raise RuntimeError(f"labels of shape {labels.shape} for pixels of shape {pixels.shape}")
