"""A small HTTP/1.1 server that bounds what its clients can hold: heads, bodies, trailers, time and connections.

h11 parses, asyncio's streams carry the bytes. A connection that is not being answered always has a deadline: for a
request's head (from the connection's beginning or the last answer), for its body (from the end of the head), and for
reading an answer (from its beginning), `timeout_s` each.
"""

import asyncio
import contextlib
import socket
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from email.utils import formatdate
from http import HTTPStatus
from types import MappingProxyType
from typing import Any, NamedTuple, TypeVar
from urllib.parse import unquote

import h11
import msgspec
import numpy as np

from fcn_deploy.serving.protocol import (
    RETRY_AFTER_S,
    ClientGoneError,
    RequestError,
    bad_request,
    server_failure,
    unavailable,
)

T = TypeVar("T")

# Limit of a head, of a chunk's size line with its extensions, and of trailers, in bytes.
MAX_HEAD_BYTES = 65_536
# Limit of all bodies together: 300 clients with 500x500 pixels.
MAX_HELD_BYTES = 256_000_000
# Each connection may hold an answer that its client does not read.
MAX_CONNECTIONS = 512
_BACKLOG = 512
_READ_BYTES = 65_536
_MAX_PIPELINED_BYTES = 65_536
# A client that is still sending reads the answer only afterwards, so a refused body is read on for a while.
_DISCARD_S = 2.0


class HttpRequest(NamedTuple):
    """The head of a request: method, path without the query, and headers by lower-case name."""

    method: str
    path: str
    headers: dict[str, str]


class HttpResponse(NamedTuple):
    """A response; `headers` leaves out its length and whether the connection closes."""

    status: int
    body: bytes
    headers: Mapping[str, str] = MappingProxyType({})


def json_response(value: Any, headers: dict[str, str] | None = None, status: int = HTTPStatus.OK) -> HttpResponse:
    """Return a response whose body is JSON."""
    return HttpResponse(status, msgspec.json.encode(value), {"content-type": "application/json"} | (headers or {}))


def error_response(error: RequestError) -> HttpResponse:
    """Return the response to a request that is refused: JSON with one member, `error`."""
    retry = {"retry-after": str(RETRY_AFTER_S)} if error.status == HTTPStatus.SERVICE_UNAVAILABLE else {}
    return json_response({"error": str(error)}, retry, error.status)


class HttpConnection:
    """One client's connection. The server's handler reads each request's body from it, and sends the response to it."""

    def __init__(self, server: "HttpServer", reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._server = server
        self._reader, self._writer = reader, writer
        self._parser = _parser()
        self._ahead = b""  # what came after the current request
        self._held_bytes = 0
        self._request_complete = self._without_body = False
        # With any other limit, `drain` returns before the client has everything.
        writer.transport.set_write_buffer_limits(0)

    async def serve(self) -> None:
        """Answer requests one after the other until the connection ends."""
        try:
            with contextlib.suppress(ClientGoneError):
                while await self._serve_one():
                    self._parser = _parser()
                    self._receive(self._ahead)
                self._writer.close()
        finally:
            if not self._writer.is_closing():
                self.abort()

    def abort(self) -> None:
        """Close the connection at once, even with unread or unsent data."""
        self._writer.transport.abort()

    async def read_body(self, request: HttpRequest, max_bytes: int) -> memoryview:
        """Return the body of the current request; to be called once for each request, whether or not it has one.

        Raises:
            RequestError: it is too large, too slow, or one too many.
            ClientGoneError: the client left before it was complete.
        """
        size = int(request.headers.get("content-length", "0"))  # h11 accepts nothing but up to 20 digits
        if size > max_bytes:
            raise _too_large(str(size), max_bytes)
        if self._parser.they_are_waiting_for_100_continue:
            self._writer.write(self._parser.send(h11.InformationalResponse(status_code=100, headers=[])) or b"")
        try:
            with self._depends_on_client(self._server.transferring):
                async with asyncio.timeout(self._server.timeout_s):
                    if "transfer-encoding" in request.headers:
                        body = await self._read_chunks(max_bytes)
                    else:
                        body = await self._read_sized(size)
        except TimeoutError:
            raise RequestError(
                HTTPStatus.REQUEST_TIMEOUT,
                f"{self._held_bytes} bytes of the body came in {self._server.timeout_s:g} s, and it is not complete",
                "Send it faster.",
            ) from None
        self._request_complete = True
        return body

    async def _read_sized(self, size: int) -> memoryview:
        """Return a body of a declared size, which is read past h11, because h11 would copy it three times."""
        # The system commits memory only when it is written to, so a large declared size costs nothing.
        body = np.empty(size, np.uint8).data
        data = self._parser.trailing_data[0]
        self._ahead = data[size:]
        data = data[:size]
        while True:
            body[self._held_bytes : self._held_bytes + len(data)] = data
            self._hold(len(data))
            if self._held_bytes == size:
                return body
            data = await self._read(min(_READ_BYTES, size - self._held_bytes))

    async def _read_chunks(self, max_bytes: int) -> memoryview:
        body = bytearray()
        while type(event := await self._next_event()) is h11.Data:
            body += event.data
            self._hold(len(event.data))
            if len(body) > max_bytes:
                raise _too_large(f"more than {max_bytes}", max_bytes)
            # One read may contain thousands of chunks; other connections get their turn in between.
            await asyncio.sleep(0)
        self._ahead = self._parser.trailing_data[0]
        return memoryview(body)

    async def while_connected(self, work: Coroutine[Any, Any, T]) -> T:
        """Return what `work` returns; when the client leaves first, cancel it and raise a `ClientGoneError`."""
        task, watch = asyncio.ensure_future(work), asyncio.ensure_future(self._wait_until_gone())
        try:
            await asyncio.wait((task, watch), return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise ClientGoneError
            return task.result()
        finally:
            task.cancel()
            watch.cancel()
            await asyncio.wait((task, watch))

    async def _wait_until_gone(self) -> None:
        """Wait until the client leaves; a client that sends ahead is read only so far, and then not watched."""
        with contextlib.suppress(ClientGoneError):
            while len(self._ahead) < _MAX_PIPELINED_BYTES:
                self._ahead += await self._read()
            await asyncio.Event().wait()

    async def send(self, response: HttpResponse, *, close: bool = False) -> None:
        """Send the response to the current request, and wait until the client has taken it.

        A HEAD request is sent the headers only; `close` tells the client that the connection ends.

        Raises:
            ClientGoneError: the client left, or did not take it in time.
        """
        self.write(response, close=close)
        try:
            with self._depends_on_client(self._server.transferring):
                async with asyncio.timeout(self._server.timeout_s):
                    await self._writer.drain()
            if self._writer.is_closing():
                raise ClientGoneError
        except OSError as error:  # a timeout is one, too
            raise ClientGoneError from error

    def write(self, response: HttpResponse, *, close: bool) -> None:
        """Begin to send a response, as `send`."""
        headers = {"date": formatdate(usegmt=True), "content-length": str(len(response.body)), **response.headers}
        if close:
            headers["connection"] = "close"
        parts = [self._parser.send(h11.Response(status_code=response.status, headers=list(headers.items())))]
        if not self._without_body:
            parts.append(response.body)
            self._parser.send_with_data_passthrough(h11.Data(data=response.body))
        self._parser.send(h11.EndOfMessage())
        self._writer.writelines(part for part in parts if part)

    async def _serve_one(self) -> bool:
        """Answer one request, and return whether another may follow."""
        request = None
        self._request_complete = self._without_body = False
        try:
            request = await self._read_head()
            await self._server.handler(self, request)
        except RequestError as error:
            await self._refuse(error)
        except ClientGoneError:
            raise
        except Exception as error:
            name = f"{request.method} {request.path}" if request else "connection"
            await self._refuse(server_failure(name, error))
        finally:
            self._hold(-self._held_bytes)
        return self._request_complete and self._parser.our_state is h11.DONE and not self._server.stopping

    async def _read_head(self) -> HttpRequest:
        try:
            with self._depends_on_client(self._server.awaiting_head):
                async with asyncio.timeout(self._server.timeout_s):
                    event = await self._next_event()
        except TimeoutError:
            raise ClientGoneError from None
        if not isinstance(event, h11.Request):
            raise ClientGoneError
        self._without_body = event.method == b"HEAD"
        path = unquote(event.target.partition(b"?")[0].decode("latin-1"))
        headers = {name.decode("latin-1"): value.decode("latin-1") for name, value in event.headers}
        return HttpRequest(event.method.decode("latin-1"), path, headers)

    async def _next_event(self) -> Any:
        """Return h11's next event, reading from the client as often as needed."""
        try:
            while (event := self._parser.next_event()) is h11.NEED_DATA:
                self._receive(await self._read())
        except h11.RemoteProtocolError as error:
            if error.error_status_hint == HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE:
                problem = f"the request's head or trailers take more than {MAX_HEAD_BYTES} bytes"
                raise bad_request(problem, "Send fewer.") from None
            problem = f"this is not valid HTTP/1.1: {str(error)[:100]}"
            raise bad_request(problem, "Send a request of HTTP/1.1.") from None
        return event

    def _receive(self, data: bytes) -> None:
        # Some clients send a line break after the body.
        if data[:1] in {b"\r", b"\n"} and self._parser.their_state is h11.IDLE and not self._parser.trailing_data[0]:
            data = data.lstrip(b"\r\n")
        if data:  # h11 takes no data as the end
            self._parser.receive_data(data)

    async def _read(self, max_bytes: int = _READ_BYTES) -> bytes:
        """Return what the client sends next; raises `ClientGoneError` when it ended the connection."""
        try:
            data = await self._reader.read(max_bytes)
        except OSError as error:
            raise ClientGoneError from error
        if not data:
            raise ClientGoneError
        return data

    async def _refuse(self, error: RequestError) -> None:
        """Send an error; when the client is still sending, close the connection after reading on for a while."""
        if self._parser.our_state not in (h11.IDLE, h11.SEND_RESPONSE):  # an answer was begun already
            raise ClientGoneError
        await self.send(error_response(error), close=not self._request_complete)
        if not self._request_complete:
            with contextlib.suppress(ClientGoneError, OSError), self._depends_on_client(self._server.transferring):
                async with asyncio.timeout(_DISCARD_S):
                    self._writer.write_eof()
                    while await self._read():
                        pass

    @contextlib.contextmanager
    def _depends_on_client(self, waiting: "dict[HttpConnection, float]") -> Iterator[None]:
        """Let the server close this connection for a new one as long as it waits for its client."""
        waiting[self] = time.monotonic()
        try:
            yield
        finally:
            waiting.pop(self, None)

    def _hold(self, count: int) -> None:
        """Account for bytes of bodies in memory."""
        self._held_bytes += count
        self._server.held_bytes += count
        if count > 0 and self in self._server.transferring:
            self._server.transferring[self] = time.monotonic()
        if count > 0 and self._server.held_bytes > MAX_HELD_BYTES:
            raise unavailable(f"all requests together hold more than {MAX_HELD_BYTES} bytes")


def _too_large(size: str, max_bytes: int) -> RequestError:
    return RequestError(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of {size} bytes is too large: at most {max_bytes} are accepted",
        "Scale the photo down, or send tensors as binary data.",
    )  # fmt: skip


def _parser() -> h11.Connection:
    return h11.Connection(h11.SERVER, max_incomplete_event_size=MAX_HEAD_BYTES)


class HttpServer:
    """Accepts a limited number of connections and answers their requests with `handler`.

    When all are in use, the one that has waited longest for its client is closed for a new one: for a request's head,
    for the rest of its body, or for the client to read an answer.

    Args:
        handler: reads the body of a request from its connection, and sends the response to it; a `RequestError` that
            it raises becomes the response.
        timeout_s: seconds a client has for each of a head, a body, and reading an answer.
    """

    def __init__(self, handler: Callable[[HttpConnection, HttpRequest], Awaitable[None]], timeout_s: float) -> None:
        self.handler = handler
        self.timeout_s = timeout_s
        self.held_bytes = 0  # of all bodies in memory
        # Connections without a complete request's head, and those whose client sends a body or reads an answer, with
        # the time since when nothing came.
        self.awaiting_head: dict[HttpConnection, float] = {}
        self.transferring: dict[HttpConnection, float] = {}
        self.stopping = False  # connections end after the current answer
        self.connections: set[asyncio.Task[None]] = set()
        self._listener: asyncio.Server | None = None

    async def start(self, listener: socket.socket) -> None:
        """Accept connections on a socket that is bound already."""
        self._listener = await asyncio.start_server(self._connected, sock=listener, limit=_READ_BYTES, backlog=_BACKLOG)

    async def stop(self, grace_s: float) -> None:
        """Stop listening, close connections that wait for a request, and give the others some seconds to end."""
        self.stopping = True
        if self._listener is not None:
            self._listener.close()
        for connection in list(self.awaiting_head):
            connection.abort()
        if self.connections:
            _, unfinished = await asyncio.wait(self.connections, timeout=grace_s)
            for task in unfinished:
                task.cancel()
            await asyncio.gather(*unfinished, return_exceptions=True)

    def _connected(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connection = HttpConnection(self, reader, writer)
        if len(self.connections) >= MAX_CONNECTIONS:
            waiting = self.awaiting_head | self.transferring
            longest_waiting = min(waiting, key=waiting.__getitem__, default=None)
            if longest_waiting is None:
                error = unavailable(f"all of {MAX_CONNECTIONS} connections are in use")
                connection.write(error_response(error), close=True)
                writer.close()
                return
            self.awaiting_head.pop(longest_waiting, None)
            self.transferring.pop(longest_waiting, None)
            longest_waiting.abort()
        self.awaiting_head[connection] = time.monotonic()
        task = asyncio.create_task(connection.serve())
        self.connections.add(task)
        task.add_done_callback(self.connections.discard)
