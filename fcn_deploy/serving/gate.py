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
from fcn_deploy.serving.refusals import Refusal, failure

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
        except Exception as error:
            LOGGER.error("%s %s: %s: %s", scope["method"], scope["path"], type(error).__name__, error)
            if not sent.begun:
                await _refuse(failure(), scope, receive, send)

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
    """Passes an answer on; remembers its status, and whether it is complete."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self.status = int(HTTPStatus.INTERNAL_SERVER_ERROR)
        self.begun = self.complete = False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status, self.begun = message["status"], True
        else:
            self.complete = not message.get("more_body", False)
        await self._send(message)


async def _answer(app: ASGIApp, scope: Scope, body: bytes, receive: Receive, sent: _Sent) -> None:
    """Let the application answer, and cancel it when the client leaves."""
    messages: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]
    leaving = _Leaving(receive, sent)

    async def read() -> Message:
        return messages.pop() if messages else await leaving.task

    try:
        await app(scope, read, sent)
    except asyncio.CancelledError:
        if not leaving.was_first:  # the server itself does not wait any longer
            raise
        leaving.answering.uncancel()
        raise ClientGoneError from None
    finally:
        leaving.task.cancel()


class _Leaving:
    """Cancels the task that makes it when the client leaves before its answer is complete."""

    def __init__(self, receive: Receive, sent: _Sent) -> None:
        current = asyncio.current_task()
        if current is None:
            raise RuntimeError("a request is answered in a task")
        self.answering = current
        self.was_first = False
        self.task = asyncio.ensure_future(self._watch(receive, sent))

    async def _watch(self, receive: Receive, sent: _Sent) -> Message:
        while (message := await receive())["type"] != "http.disconnect":
            pass
        if not sent.complete:
            self.was_first = True
            self.answering.cancel()
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
