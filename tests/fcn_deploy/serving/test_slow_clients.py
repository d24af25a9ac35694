"""Clients that send slowly, too much, nothing, or leave in the middle."""

import json
import socket
import threading
from pathlib import Path

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

import fcn_deploy as fd
from tests.fcn_deploy.serving.clients import (
    INFER,
    binary_request,
    call,
    connect,
    exposed,
    grpc_client,
    http_client,
    http_infer,
    noise,
    read_until_closed,
    wait_for_metric,
)
from tests.fcn_deploy.serving.conftest import OPTIONS, Held

HEAD = f"POST {INFER} HTTP/1.1\r\nHost: localhost\r\n".encode()
# What the narrow model's input takes as JSON at most, and what a photo may have.
MAX_CALL, MAX_PHOTO = 6 * 96 * 96 * 3 + 65536, 32_000_000


def parsed(answer: bytes) -> tuple[int, str]:
    head, _, body = answer.partition(b"\r\n\r\n")
    return int(head.split()[1]), json.loads(body)["error"]


def test_a_body_that_does_not_come_is_given_up(server: fd.Server) -> None:
    with connect(server) as slow:
        slow.sendall(HEAD + b"Content-Length: 1000\r\n\r\n" + b"x" * 10)
        status, error = parsed(read_until_closed(slow))

    assert status == 408
    assert "10 bytes of the body came in 1 s, and it is not complete" in error


def test_a_head_that_does_not_come_is_given_up(server: fd.Server) -> None:
    with connect(server) as silent, connect(server) as slow:
        slow.sendall(HEAD[:20])
        assert read_until_closed(silent) == b""
        assert read_until_closed(slow) == b""


def test_a_second_head_that_does_not_come_is_given_up(server: fd.Server) -> None:
    with connect(server) as slow:
        slow.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\nGET /v2")
        assert read_until_closed(slow).endswith(b'{"live":true}')


def test_a_head_without_end_is_refused(server: fd.Server) -> None:
    with connect(server) as endless:
        endless.sendall(HEAD + b"X-Long: " + b"y" * 70_000)
        status, error = parsed(read_until_closed(endless))

    assert status == 400
    assert "head or trailers take more than 65536 bytes" in error


def test_what_is_no_http_is_told_so(server: fd.Server) -> None:
    with connect(server) as other:
        other.sendall(b"\x16\x03\x01 hello\r\n\r\n")
        status, error = parsed(read_until_closed(other))

    assert status == 400
    assert "not valid HTTP/1.1: illegal request line" in error


@pytest.mark.parametrize(("path", "bound"), [(INFER, MAX_CALL), ("/segment", MAX_PHOTO), ("/nowhere", MAX_CALL)])
def test_a_declared_length_beyond_the_bound_is_refused_unread(server: fd.Server, path: str, bound: int) -> None:
    with connect(server) as large:
        large.sendall(f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {bound + 1}\r\n\r\n".encode())
        large.shutdown(socket.SHUT_WR)
        status, error = parsed(read_until_closed(large))

    assert status == 413
    assert f"a body of {bound + 1} bytes is too large: at most {bound} are accepted" in error


def test_a_client_that_sends_too_much_still_reads_why(server: fd.Server) -> None:
    status, answer, headers = call(server, INFER, bytes(5_000_000))

    assert status == 413
    assert f"at most {MAX_CALL} are accepted" in answer["error"]
    assert headers["connection"] == "close"


def test_chunks_are_counted(server: fd.Server) -> None:
    with connect(server) as chunked:
        chunked.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\n")
        for _ in range(4):
            chunked.sendall(b"10000\r\n" + bytes(65536) + b"\r\n")
        chunked.shutdown(socket.SHUT_WR)
        status, error = parsed(read_until_closed(chunked))

    assert status == 413
    assert f"a body of more than {MAX_CALL} bytes" in error


def test_a_chunk_that_is_none_is_the_clients_fault(server: fd.Server) -> None:
    with connect(server) as chunked:
        chunked.sendall(HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\n")
        status, error = parsed(read_until_closed(chunked))

    assert status == 400
    assert "not valid HTTP/1.1" in error
    assert 'fcn_deploy_requests_total{outcome="failed",protocol="http"} 0.0' in exposed(server)


def test_chunks_within_the_bound_are_answered(server: fd.Server) -> None:
    body, headers = binary_request(noise())
    with connect(server) as chunked:
        fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
        chunked.sendall(HEAD + f"{fields}Connection: close\r\nTransfer-Encoding: chunked\r\n\r\n".encode())
        for part in (body[:1000], body[1000:], b""):
            chunked.sendall(f"{len(part):x}\r\n".encode() + part + b"\r\n")
        answer = read_until_closed(chunked)

    assert answer.startswith(b"HTTP/1.1 200")
    assert answer.count(b"labels") == 1


def test_all_bodies_together_are_bounded(server: fd.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fcn_deploy.serving.http.MAX_HELD_BYTES", 20_000)
    status, answer, headers = call(server, INFER, *binary_request(noise()))

    assert status == 503
    assert "all requests together hold more than 20000 bytes" in answer["error"]
    assert headers["retry-after"] == "1"
    monkeypatch.undo()
    assert call(server, INFER, b"{}")[0] == 400
    assert "fcn_deploy_body_bytes 0.0" in exposed(server)


def test_a_client_that_left_does_not_take_the_models_time(shared_bundle: Path, held: Held) -> None:
    body, headers = binary_request(noise())
    fields = "".join(f"{name}: {value}\r\n" for name, value in headers.items())
    request = HEAD + f"{fields}Content-Length: {len(body)}\r\n\r\n".encode() + body
    with fd.Server(shared_bundle, OPTIONS) as server:
        with connect(server) as first, connect(server) as leaving:
            first.sendall(request)
            assert held.begun.acquire(timeout=20)
            leaving.sendall(request)
            wait_for_metric(server, "waiting", 1)
        wait_for_metric(server, "waiting", 0)
        held.going.set()
        with http_client(server) as client:
            assert http_infer(client, noise()).shape == (1, 96, 96)
        metrics = exposed(server)

    assert len(held.feeds) == 2
    assert 'fcn_deploy_requests_total{outcome="gone",protocol="http"} 2.0' in metrics
    assert "fcn_deploy_in_flight 0.0" in metrics


def test_a_grpc_client_whose_time_is_over_does_not_take_the_models_time(shared_bundle: Path, held: Held) -> None:
    given = tritonclient.grpc.InferInput("pixels", [1, 96, 96, 3], "UINT8")
    given.set_data_from_numpy(noise())
    with fd.Server(shared_bundle, OPTIONS) as server, grpc_client(server) as client:
        answers = []
        first = threading.Thread(target=lambda: answers.append(client.infer("net", [given])))
        first.start()
        assert held.begun.acquire(timeout=20)
        with pytest.raises(InferenceServerException, match="Deadline Exceeded"):
            client.infer("net", [given], client_timeout=0.2)
        wait_for_metric(server, "waiting", 0)
        held.going.set()
        first.join()
        metrics = exposed(server)

    assert len(answers) == len(held.feeds) == 1
    assert 'fcn_deploy_requests_total{outcome="gone",protocol="grpc"} 1.0' in metrics
