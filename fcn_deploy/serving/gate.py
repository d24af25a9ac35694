"""In front of the application: every request that brings a body is admitted, bounded, counted, and given up in time."""

import asyncio
import contextlib
import logging
from http import HTTPStatus

from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from fcn_deploy.serving import metrics
from fcn_deploy.serving.admission import Admission
from fcn_deploy.serving.bodies import Bodies, ClientGoneError, discard
from fcn_deploy.serving.metrics import Metrics
from fcn_deploy.serving.refusals import Refusal

LOGGER = logging.getLogger("fcn_deploy.serving")
PAGE_POST = "/segment"


class Gate:
    """An ASGI application around another, for HTTP only.

    Args:
        app: what answers.
        admission: who is let in.
        bodies: reads bodies.
        counted: where requests are counted.
        max_bytes: of a body, by path; other paths have the last one's.
    """

    def __init__(
        self, app: ASGIApp, admission: Admission, bodies: Bodies, counted: Metrics, max_bytes: tuple[int, int]
    ) -> None:
        self._app = app
        self._admission = admission
        self._bodies = bodies
        self._metrics = counted
        self._max_photo_bytes, self._max_call_bytes = max_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request, whatever happens."""
        sent = _Sent(send)
        try:
            if scope["method"] == "POST":
                await self._post(scope, receive, sent)
            else:
                await self._app(scope, receive, sent)
        except Refusal as refusal:
            await _refuse(refusal, scope, receive, send)
        except ClientGoneError:
            pass
        except Exception as error:  # the application has answered with 500 if it could; the log says why
            LOGGER.error("%s %s: %s: %s", scope["method"], scope["path"], type(error).__name__, error)  # noqa: TRY400

    async def _post(self, scope: Scope, receive: Receive, sent: "_Sent") -> None:
        on_page = scope["path"] == PAGE_POST
        max_bytes = self._max_photo_bytes if on_page else self._max_call_bytes
        with self._metrics.request("page" if on_page else "http") as request, self._admission.entered():
            try:
                async with self._bodies.reading(scope, receive, max_bytes) as body:
                    await _answer(self._app, scope, body, receive, sent)
            except ClientGoneError:
                request.outcome = metrics.GONE
                raise
            request.outcome = metrics.outcome_of(sent.status)


class _Sent:
    """Passes an answer on and remembers its status."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = int(HTTPStatus.INTERNAL_SERVER_ERROR)

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
        await self._send(message)


async def _answer(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, send: Send) -> None:
    """Let the application answer, and cancel it when the client leaves."""
    leaving = asyncio.ensure_future(_gone(receive))
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def read() -> Message:
        return messages.pop() if messages else await leaving

    answering = asyncio.ensure_future(app(scope, read, send))  # type: ignore[arg-type] # a coroutine, in effect
    try:
        await asyncio.wait((answering, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not answering.done():
            raise ClientGoneError
        await answering
    finally:
        answering.cancel()
        leaving.cancel()
        await asyncio.gather(answering, leaving, return_exceptions=True)


async def _gone(receive: Receive) -> Message:
    while (message := await receive())["type"] != "http.disconnect":
        pass
    return message


async def _refuse(refusal: Refusal, scope: Scope, receive: Receive, send: Send) -> None:
    """Say why, then read on for a while: a client that is still sending looks for the answer only afterwards."""
    response = JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)
    if not refusal.closes:
        await response(scope, receive, send)
        return

    async def held_open(message: Message) -> None:
        await send({**message, "more_body": True} if message["type"] == "http.response.body" else message)

    await response(scope, receive, held_open)
    with contextlib.suppress(ClientGoneError):
        await discard(receive)
    await send({"type": "http.response.body", "body": b"", "more_body": False})
