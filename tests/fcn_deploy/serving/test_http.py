"""The HTTP server by itself, on real sockets: what a client can hold of it, and for how long."""

import asyncio
import contextlib
import socket
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator

import pytest

from fcn_deploy.serving.http import HttpConnection, HttpRequest, HttpResponse, HttpServer
from fcn_deploy.serving.server import listen
from tests.fcn_deploy.serving.clients import read_until_closed, wait_until

TIMEOUT_S = 0.3
# How much later than its deadline a connection may end on a busy machine.
SLACK_S = 5.0
MAX_BODY = 1_000_000
GET = b"GET / HTTP/1.1\r\nHost: x\r\n"
POST = b"POST / HTTP/1.1\r\nHost: x\r\n"
CHUNKED = POST + b"Transfer-Encoding: chunked\r\n\r\n"

Connect = Callable[[], socket.socket]


async def answer(connection: HttpConnection, request: HttpRequest) -> None:
    """Answer with the body's size; `/large` with more than a socket holds, `/never` not at all."""
    body = await connection.read_body(request, MAX_BODY)
    if request.path == "/never":
        await connection.while_connected(asyncio.sleep(3600))
    content = bytes(50_000_000) if request.path == "/large" else f"{len(body)} bytes".encode()
    await connection.send(HttpResponse(200, content))


@pytest.fixture
def server() -> HttpServer:
    return HttpServer(answer, TIMEOUT_S)


@pytest.fixture
def connect(server: HttpServer) -> Iterator[Connect]:
    """Connects to a server that runs for the length of the test."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    listener = listen("127.0.0.1", 0, "")
    address = listener.getsockname()
    asyncio.run_coroutine_threadsafe(server.start(listener), loop).result(SLACK_S)
    with contextlib.ExitStack() as opened:
        yield lambda: opened.enter_context(socket.create_connection(address, SLACK_S))
        asyncio.run_coroutine_threadsafe(server.stop(0), loop).result(SLACK_S)
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.close()
    assert server.held_bytes == len(server.awaiting_head) == 0


def response_to(client: socket.socket, sent: bytes = b"") -> bytes:
    """Send, and return the first part of the answer."""
    client.sendall(sent)
    return client.recv(65536)


def send_until_refused(client: socket.socket, part: bytes, total: int) -> None:
    with contextlib.suppress(ConnectionError):
        for _ in range(total // len(part)):
            client.sendall(part)


@pytest.mark.parametrize(("sent", "expected"), [
    (b"", b""),
    (b"\r\n", b""),
    (b"GET / HT", b""),
    (GET + b"X: y\r\n", b""),
    (GET + b"Content-Length: 10\r\n\r\n12345", b"408"),
    (GET + b"Transfer-Encoding: chunked\r\n\r\n5\r\n123", b"408"),
    (POST + b"Content-Length: 10\r\n\r\n12345", b"408"),
    (CHUNKED + b"0\r\nTrailer: x\r\n", b"408"),
], ids=["nothing", "a line break", "half a line", "half a head", "half a GET's body", "half a chunk",
        "half a POST's body", "half a trailer"])  # fmt: skip
@pytest.mark.parametrize("answered_before", [False, True], ids=["first", "after an answer"])
def test_a_connection_that_is_not_being_answered_has_a_deadline(
    connect: Connect, sent: bytes, expected: bytes, answered_before: bool
) -> None:
    client = connect()
    if answered_before:
        assert response_to(client, GET + b"\r\n").endswith(b"0 bytes")
    client.sendall(sent)
    start = time.monotonic()
    answer = read_until_closed(client)

    assert answer[9:12] == expected
    assert TIMEOUT_S - 0.1 < time.monotonic() - start < TIMEOUT_S + SLACK_S


def test_a_head_that_trickles_has_one_deadline(connect: Connect) -> None:
    client, start = connect(), time.monotonic()
    with contextlib.suppress(ConnectionError):
        while time.monotonic() - start < SLACK_S:
            client.sendall(b"G")
            client.settimeout(0.02)
            with contextlib.suppress(TimeoutError):
                assert client.recv(1) == b""
                break

    assert time.monotonic() - start < SLACK_S


def test_an_answer_that_is_not_read_has_a_deadline(connect: Connect, server: HttpServer) -> None:
    client = connect()
    assert response_to(client, b"GET /large HTTP/1.1\r\nHost: x\r\n\r\n").startswith(b"HTTP/1.1 200")
    time.sleep(TIMEOUT_S + 0.2)

    assert len(read_until_closed(client)) < 50_000_000


@pytest.mark.parametrize(("begin", "part"), [
    (GET, b"X: y\r\n" * 1000),
    (GET + b"X: ", b"y" * 65536),
    (b"", b"y" * 65536),
    (CHUNKED + b"0\r\n", b"X: y\r\n" * 1000),
    (CHUNKED + b"0\r\nX: ", b"y" * 65536),
    (CHUNKED + b"1;", b"y" * 65536),
    (CHUNKED, b"0" * 65536),
    (CHUNKED, b"1\r\nx\r\n" * 1000),
], ids=["headers", "a header's value", "a request line", "trailers", "a trailer's value", "a chunk's extension",
        "a chunk's size", "chunks"])  # fmt: skip
def test_what_does_not_end_is_refused_and_not_kept(connect: Connect, begin: bytes, part: bytes) -> None:
    client, other = connect(), connect()
    tracemalloc.start()
    try:
        client.sendall(begin)
        flood = threading.Thread(target=send_until_refused, args=(client, part, 30_000_000))
        flood.start()
        while flood.is_alive():
            start = time.monotonic()
            assert response_to(other, GET + b"\r\n").endswith(b"0 bytes")
            assert time.monotonic() - start < SLACK_S
        flood.join()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()

    assert peak < 8_000_000
    assert read_until_closed(client)[9:10] in (b"4", b"")


@pytest.mark.parametrize("sent", [
    b"GET", GET + b"Content-Length: 10\r\n\r\n12345", CHUNKED + b"0\r\nTrailer: x\r\n",
    POST + b"Content-Length: 99999999\r\n\r\n", GET.replace(b"/", b"/large", 1) + b"\r\n",
], ids=["half a head", "half a GET's body", "half a trailer", "a refused body", "an unread answer"])  # fmt: skip
def test_the_connection_that_waits_longest_for_its_client_gives_way(
    server: HttpServer, connect: Connect, monkeypatch: pytest.MonkeyPatch, sent: bytes
) -> None:
    monkeypatch.setattr(server, "timeout_s", 30.0)
    monkeypatch.setattr("fcn_deploy.serving.http.MAX_CONNECTIONS", 8)
    waiting = [connect() for _ in range(8)]
    wait_until(lambda: len(server.awaiting_head) == 8)
    for client in waiting:
        client.sendall(sent)
    if sent != b"GET":
        wait_until(lambda: len(server.transferring) == 8)

    assert response_to(connect(), GET + b"\r\n").endswith(b"0 bytes")
    wait_until(lambda: len(server.connections) == 8)
    with contextlib.suppress(ConnectionError):  # closed: everything that was sent can be read
        read_until_closed(waiting[0])


def test_when_all_connections_are_being_answered_one_more_is_refused(
    connect: Connect, server: HttpServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("fcn_deploy.serving.http.MAX_CONNECTIONS", 2)
    clients = [connect(), connect()]
    wait_until(lambda: len(server.awaiting_head) == len(clients))
    for client in clients:
        client.sendall(b"GET /never HTTP/1.1\r\nHost: x\r\n\r\n")
    wait_until(lambda: not server.awaiting_head)
    assert len(server.connections) == len(clients)
    refused = read_until_closed(connect())

    assert refused.startswith(b"HTTP/1.1 503")
    assert b"retry-after: 1" in refused
    assert b"all of 2 connections are in use" in refused


def test_requests_one_after_the_other_and_ahead_of_their_answers(connect: Connect) -> None:
    client = connect()
    for size in (0, 10, 200_000):
        sent = POST + f"Content-Length: {size}\r\n\r\n".encode() + bytes(size)
        assert response_to(client, sent).endswith(f"{size} bytes".encode())
        client.sendall(b"\r\n")  # as some clients do after a body
    assert response_to(client, POST + b"Content-Length: 1\r\n\r\nx\r\n").endswith(b"1 bytes")
    client.sendall(2 * (GET + b"\r\n") + b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
    answer = read_until_closed(client)

    assert answer.count(b"HTTP/1.1 200") == answer.count(b"content-length: 7") == 3
    assert answer.count(b"0 bytes") == 2


def test_a_client_that_waits_for_leave_to_send_gets_it(connect: Connect) -> None:
    client = connect()
    asked = response_to(client, POST + b"Content-Length: 4\r\nExpect: 100-continue\r\n\r\n")
    assert asked.startswith(b"HTTP/1.1 100")
    assert response_to(client, b"body").endswith(b"4 bytes")

    refused = response_to(connect(), POST + b"Content-Length: 9999999\r\nExpect: 100-continue\r\n\r\n")
    assert refused.startswith(b"HTTP/1.1 413")


def test_a_failure_is_answered_and_logged_in_one_line(
    connect: Connect, server: HttpServer, caplog: pytest.LogCaptureFixture
) -> None:
    async def fail(_connection: HttpConnection, _request: HttpRequest) -> None:
        raise OSError("no such file")

    server.handler = fail

    assert b" 500 " in response_to(connect(), GET + b"\r\n")
    assert [record.getMessage() for record in caplog.records] == ["GET /: OSError: no such file"]
