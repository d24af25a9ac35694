"""How a server ends: what was accepted is answered, what comes later is refused, and nothing waits forever."""

import contextlib
import http.client
import json
import socket
import threading
from concurrent.futures import CancelledError
from dataclasses import replace
from pathlib import Path
from typing import Self

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import fcn_deploy as fd
from fcn_deploy.segmentation import Segmenter
from fcn_deploy.serving.server import listen
from tests.fcn_deploy.serving.clients import (
    INFER,
    Pixels,
    address,
    binary_request,
    call,
    connect,
    grpc_client,
    grpc_infer,
    http_client,
    http_infer,
    noise,
    read_until_closed,
    wait_for_metric,
    wait_until,
)
from tests.fcn_deploy.serving.conftest import OPTIONS, Held


def in_thread(work: object, *arguments: object) -> threading.Thread:
    thread = threading.Thread(target=work, args=arguments)  # type: ignore[arg-type]
    thread.start()
    return thread


def wait_until_not_ready(server: fd.Server) -> None:
    wait_until(lambda: call(server, "/v2/health/ready")[0] != 200)


def test_what_was_accepted_is_answered_and_what_comes_later_is_refused(shared_bundle: Path, held: Held) -> None:
    answers: list[Pixels] = []

    def over_http(pixels: Pixels) -> None:
        with http_client(server) as client:
            answers.append(http_infer(client, pixels))

    def over_grpc(pixels: Pixels) -> None:
        with grpc_client(server) as client:
            answers.append(grpc_infer(client, pixels))

    server = fd.Server(shared_bundle, OPTIONS)
    with server, grpc_client(server) as late:
        assert late.is_server_ready()
        accepted = [in_thread(over_http, noise(seed=1))]
        assert held.begun.acquire(timeout=20)
        accepted.append(in_thread(over_grpc, noise(seed=1)))
        wait_for_metric(server, "waiting", 1)
        ending = in_thread(server.stop)
        wait_until_not_ready(server)
        assert call(server, "/v2/health/ready")[1] == {"error": "the server is shutting down. Try again after 1 s."}
        assert call(server, "/v2/health/live")[0] == 200
        assert call(server, "/v2/models/net/ready")[0] == 503
        assert not late.is_server_ready()
        status, answer, headers = call(server, INFER, *binary_request(noise()))
        with pytest.raises(InferenceServerException, match="the server is shutting down") as refused:
            grpc_infer(late, noise())
        held.going.set()
        for thread in (*accepted, ending):
            thread.join()

    assert (status, answer) == (503, {"error": "the server is shutting down. Try again after 1 s."})
    assert (headers["connection"], headers["retry-after"]) == ("close", "1")
    assert refused.value.status() == "StatusCode.UNAVAILABLE"
    assert len(answers) == 2
    assert np.array_equal(answers[0], answers[1])
    with pytest.raises(ConnectionRefusedError):
        connect(server)


def test_an_upload_that_had_begun_is_answered(shared_bundle: Path) -> None:
    body, fields = binary_request(noise())
    with fd.Server(shared_bundle, OPTIONS) as server:
        uploading = http.client.HTTPConnection(address(server), timeout=20)
        uploading.putrequest("POST", INFER)
        for name, value in (fields | {"Content-Length": str(len(body))}).items():
            uploading.putheader(name, value)
        uploading.endheaders(body[:100])
        wait_for_metric(server, "in_flight", 1)
        ending = in_thread(server.stop)
        wait_until_not_ready(server)
        uploading.send(body[100:])
        response = uploading.getresponse()
        assert response.status == 200
        assert len(response.read()) > 96 * 96
        uploading.close()
        ending.join()


def test_who_takes_longer_than_the_drain_is_cut_off(shared_bundle: Path) -> None:
    with fd.Server(shared_bundle, replace(OPTIONS, drain_s=0.1)) as server:
        slow = connect(server)
        slow.sendall(f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 100\r\n\r\nabc".encode())
        wait_for_metric(server, "in_flight", 1)

    with slow:
        assert b"labels" not in read_until_closed(slow)


def load_slowly(monkeypatch: pytest.MonkeyPatch) -> tuple[threading.Event, threading.Event]:
    """Have models wait while they are loaded: the first event is set then, the second one ends it."""
    loading, going = threading.Event(), threading.Event()

    class Slow(Segmenter):
        def __enter__(self) -> Self:
            loading.set()
            assert going.wait(20)
            return super().__enter__()

    monkeypatch.setattr("fcn_deploy.serving.model.Segmenter", Slow)
    return loading, going


def free_port() -> int:
    with listen("127.0.0.1", 0, "") as free:
        return int(free.getsockname()[1])


def test_nothing_is_let_in_before_the_model_is_loaded(shared_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loading, going = load_slowly(monkeypatch)
    port = free_port()
    server = fd.Server(shared_bundle, replace(OPTIONS, http_port=port))
    entering = in_thread(server.__enter__)
    assert loading.wait(20)
    early = http.client.HTTPConnection("127.0.0.1", port, timeout=20)
    early.request("GET", "/v2/health/ready")
    response = early.getresponse()
    assert (response.status, json.loads(response.read())["error"]) == (
        503, "the server is loading its model. Try again after 1 s.",
    )  # fmt: skip
    body, fields = binary_request(noise())
    early.request("POST", INFER, body, fields)
    response = early.getresponse()
    assert (response.status, json.loads(response.read())["error"]) == (
        503, "the server is loading its model. Try again after 1 s.",
    )  # fmt: skip
    early.close()
    going.set()
    entering.join()
    assert call(server, "/v2/health/ready")[0] == 200
    server.stop()


def test_a_server_that_is_stopped_while_it_loads_is_not_waited_for(
    shared_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loading, going = load_slowly(monkeypatch)
    port = free_port()
    server = fd.Server(shared_bundle, replace(OPTIONS, http_port=port))
    outcomes = []

    def enter() -> None:
        try:
            server.__enter__()
        except CancelledError as error:
            outcomes.append(error)

    def listens() -> bool:
        with contextlib.suppress(ConnectionRefusedError):
            socket.create_connection(("127.0.0.1", port), 20).close()
            return True
        return False

    entering = in_thread(enter)
    assert loading.wait(20)
    stopping = in_thread(server.stop)
    wait_until(lambda: not listens())
    going.set()
    entering.join(20)
    stopping.join(20)

    assert not entering.is_alive()
    assert not stopping.is_alive()
    assert len(outcomes) == 1
