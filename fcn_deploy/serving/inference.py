"""POST /v2/models/NAME/infer: the one address that has to be fast, so nothing lies between it and the gate."""

import re
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from http import HTTPStatus

import orjson
from starlette.datastructures import Headers
from starlette.types import ASGIApp, Receive, Scope, Send

from fcn_deploy.images import Pixels
from fcn_deploy.serving.handing import T, aside
from fcn_deploy.serving.model import ServedModel, ServerPlane, request_for
from fcn_deploy.serving.refusals import Refusal
from fcn_deploy.serving.sdk import InferResponse, ModelNotFound
from fcn_deploy.serving.tensors import Interface
from fcn_deploy.serving.wire import JSON_LENGTH_HEADER, Call, read_call

_PATH = re.compile(r"/v2/models/([^/]+)/infer")
_LENGTH_HEADER = JSON_LENGTH_HEADER.encode()


@dataclass(frozen=True)
class Inference:
    """An ASGI application that answers requests to infer, and hands everything else on.

    Attributes:
        plane: KServe's data plane.
        interface: what requests have to look like.
        readers: where JSON tensors are read and written, which takes long.
        others: the application for other addresses.
    """

    plane: ServerPlane
    interface: Interface
    readers: Executor
    others: ASGIApp

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request.

        Raises:
            Refusal: it is not to be answered with labels.
        """
        path = _PATH.fullmatch(scope["path"]) if scope["method"] == "POST" else None
        if path is None:
            await self.others(scope, receive, send)
            return
        content, headers = await self._infer(path[1], (await receive())["body"], Headers(scope=scope))
        head = [(b"content-length", str(len(content)).encode()), *headers]
        await send({"type": "http.response.start", "status": HTTPStatus.OK, "headers": head})
        await send({"type": "http.response.body", "body": content})

    async def _infer(self, name: str, body: bytes, headers: Headers) -> tuple[bytes, list[tuple[bytes, bytes]]]:
        model = known_model(self.plane, name)
        json_length = headers.get(JSON_LENGTH_HEADER)
        call, pixels = await self._aside(json_length is None, lambda: self._read(body, json_length))
        response = await model.predict(request_for(name, pixels, call.id, binary=call.binary))
        return await self._aside(not call.binary, lambda: _written(response))

    def _read(self, body: bytes, json_length: str | None) -> tuple[Call, Pixels]:
        call = read_call(body, json_length)
        return call, self.interface.pixels(call.tensors)

    async def _aside(self, takes_long: bool, work: Callable[[], T]) -> T:
        return await aside(self.readers, work) if takes_long else work()


def known_model(plane: ServerPlane, name: str) -> ServedModel:
    """The model of that name.

    Raises:
        Refusal: there is none.
    """
    try:
        model: ServedModel = plane.get_model_from_registry(name)
    except ModelNotFound as error:
        raise Refusal(HTTPStatus.NOT_FOUND, f"no model {name!r} is served here", "GET /v2/models lists it.") from error
    return model


def _written(response: InferResponse) -> tuple[bytes, list[tuple[bytes, bytes]]]:
    content, json_length = response.to_rest()
    if json_length is None:
        return orjson.dumps(content), [(b"content-type", b"application/json")]
    headers = [(b"content-type", b"application/octet-stream"), (_LENGTH_HEADER, str(json_length).encode())]
    return content, headers
