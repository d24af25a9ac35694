"""Uvicorn's connection with bounds that it does not have: on a request's head, and on clients that do not read."""

import asyncio
import json
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

_MAX_HEAD_BYTES = 65_536
_READ_AHEAD_BYTES = 1_000_000


class BoundedConnection(HttpToolsProtocol):
    """A connection that is closed when a request's head takes too long or too many bytes, or an answer is not read."""

    timeout_s = 30.0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._deadline: asyncio.TimerHandle | None = None
        self._head_bytes = 0

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override] # as Uvicorn has it
        """Begin to wait for a request's head."""
        super().connection_made(transport)
        self._await_head()

    def connection_lost(self, exc: Exception | None) -> None:
        """Wait for nothing more."""
        super().connection_lost(exc)
        self._head_came()

    def on_message_begin(self) -> None:
        """Begin to wait for the rest of a head."""
        super().on_message_begin()
        self._await_head()

    def on_headers_complete(self) -> None:
        """Begin to answer."""
        super().on_headers_complete()
        self._head_came()

    def data_received(self, data: bytes) -> None:
        """Read on, as long as a head does not grow too long."""
        super().data_received(data)
        if self._deadline is not None and not self.transport.is_closing():
            self._head_bytes += len(data)
            if self._head_bytes > _MAX_HEAD_BYTES:
                self.send_400_response(f"a request's head takes more than {_MAX_HEAD_BYTES} bytes. Send fewer headers.")

    def on_body(self, body: bytes) -> None:
        """Read on while the application takes up what came; Uvicorn pauses and resumes at every 64 KB."""
        if self.cycle.response_complete:
            return
        self.cycle.body += body
        if len(self.cycle.body) > _READ_AHEAD_BYTES:
            self.flow.pause_reading()
        self.cycle.message_event.set()

    def send_400_response(self, msg: str) -> None:
        """Answer what is no HTTP, as JSON like every error."""
        body = json.dumps({"error": msg}).encode()
        head = "HTTP/1.1 400 Bad Request\r\ncontent-type: application/json\r\nconnection: close\r\n"
        self.transport.write(f"{head}content-length: {len(body)}\r\n\r\n".encode() + body)
        self.transport.close()

    def timeout_keep_alive_handler(self) -> None:
        """Close a connection on which nothing came after an answer."""
        super().timeout_keep_alive_handler()
        # Closing waits until the client has read everything, which may be never.
        self.loop.call_later(self.timeout_s, self.transport.abort)

    def _await_head(self) -> None:
        self._head_came()
        self._deadline = self.loop.call_later(self.timeout_s, self.transport.close)

    def _head_came(self) -> None:
        self._head_bytes = 0
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
