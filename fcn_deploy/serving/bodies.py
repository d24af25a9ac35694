"""Request bodies: how large each may be, how long it may take to come, how much of them all is in memory."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from dataclasses import dataclass
from http import HTTPStatus

from starlette.datastructures import Headers
from starlette.types import Receive, Scope

from fcn_deploy.serving.refusals import Refusal, bad_request, busy

# All bodies together: what 300 clients send for 500x500 pixels.
MAX_HELD_BYTES = 256_000_000
# How long a refused body is still read, so that its sender gets to reading why.
_DISCARD_S = 2.0


class ClientGoneError(Exception):
    """The client left before its request was complete."""


@dataclass
class Bodies:
    """Reads bodies within bounds.

    Attributes:
        timeout_s: seconds one may take.
        held_bytes: of all that are being read or answered.
    """

    timeout_s: float
    held_bytes: int = 0

    @contextlib.asynccontextmanager
    async def reading(self, scope: Scope, receive: Receive, max_bytes: int) -> AsyncIterator[bytes]:
        """A request's body, for the length of the block.

        Raises:
            Refusal: it is too large, too slow, or one too many.
            ClientGoneError: it was not completed.
        """
        _check_length(Headers(scope=scope).get("content-length"), max_bytes)
        parts: list[bytes] = []
        try:
            try:
                async with asyncio.timeout(self.timeout_s):
                    await self._read(parts, receive, max_bytes)
            except TimeoutError:
                raise _too_slow(sum(map(len, parts)), self.timeout_s) from None
            yield parts[0] if len(parts) == 1 else b"".join(parts)
        finally:
            self.held_bytes -= sum(map(len, parts))

    async def _read(self, parts: list[bytes], receive: Receive, max_bytes: int) -> None:
        size, more = 0, True
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                raise ClientGoneError
            part, more = message.get("body", b""), message.get("more_body", False)
            parts.append(part)
            size += len(part)
            self.held_bytes += len(part)
            if size > max_bytes:
                raise _too_large(f"more than {max_bytes}", max_bytes)
            if self.held_bytes > MAX_HELD_BYTES:
                raise busy(f"all requests together hold more than {MAX_HELD_BYTES} bytes", closes=True)


async def discard(receive: Receive) -> None:
    """Read what is left of a refused body and forget it, for a short time."""
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(_DISCARD_S):
            more = True
            while more:
                message = await receive()
                more = message["type"] == "http.request" and message.get("more_body", False)


def _check_length(text: str | None, max_bytes: int) -> None:
    if text is None:
        return
    if not (text.isascii() and text.isdigit()):
        raise bad_request(f"content-length {text[:20]!r} is no number", "Send the body's size in bytes.")
    if len(text) > len(str(max_bytes)) or int(text) > max_bytes:
        raise _too_large(text[:20], max_bytes)


def _too_large(size: str, max_bytes: int) -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_ENTITY_TOO_LARGE, f"a body of {size} bytes: at most {max_bytes} are taken here",
        "Scale the photo down, or send tensors as binary data.", closes=True,
    )  # fmt: skip


def _too_slow(size: int, timeout_s: float) -> Refusal:
    return Refusal(
        HTTPStatus.REQUEST_TIMEOUT, f"{size} bytes of the body came in {timeout_s:g} s, and it is not complete",
        "Send it faster.", closes=True,
    )  # fmt: skip
