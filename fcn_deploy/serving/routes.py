"""What the HTTP server answers at each address."""

import re
from collections.abc import Callable
from concurrent.futures import Executor
from functools import partial
from http import HTTPStatus

from prometheus_client import exposition

from fcn_deploy.images import Pixels
from fcn_deploy.serving.http import MAX_HEAD_BYTES, HttpConnection, HttpRequest, HttpResponse, json_response
from fcn_deploy.serving.metrics import ServerMetrics, outcome_of
from fcn_deploy.serving.model import ModelService, server_metadata
from fcn_deploy.serving.options import ServeOptions
from fcn_deploy.serving.page import PhotoPage
from fcn_deploy.serving.protocol import (
    JSON_LENGTH_HEADER,
    InferRequest,
    RequestError,
    decode_request,
    short_repr,
)
from fcn_deploy.serving.queue import run_in_thread

_MODEL_PATH = re.compile(r"/v2/models/([^/]+)(/ready|/infer)?")
_SEGMENT_PATH = "/segment"
_BYTES_PER_MB = 1_000_000
# Of a value as JSON, with a comma, a space, and a bracket now and then.
_JSON_BYTES_PER_VALUE = 6


class Routes:
    """The addresses of one server: the Open Inference Protocol, metrics, and the page.

    `executor`, for JSON tensors and photos, has to have one thread: a decoded photo takes up to half a gigabyte.
    """

    def __init__(
        self, service: ModelService, metrics: ServerMetrics, options: ServeOptions, executor: Executor
    ) -> None:
        self._service = service
        self._metrics = metrics
        self._executor = executor
        self._max_photo_bytes = options.max_photo_mb * _BYTES_PER_MB
        self._max_infer_bytes = _JSON_BYTES_PER_VALUE * service.interface.tensor_bytes + MAX_HEAD_BYTES
        self._page = PhotoPage(service, executor, options.keep_aspect, self._max_photo_bytes)
        self._get_routes: dict[str, Callable[[HttpRequest], HttpResponse]] = {
            "/v2": lambda _: json_response(server_metadata()),
            "/v2/models": lambda _: json_response({"models": [service.name]}),
            "/v2/health/live": lambda _: json_response({"live": True}),
            "/v2/health/ready": self._get_ready,
            "/metrics": self._get_metrics,
            "/facts": lambda _: self._page.facts(),
            **{path: lambda request: self._page.file(request.path) for path in self._page.files},
        }

    async def handle(self, connection: HttpConnection, request: HttpRequest) -> None:
        """Answer one request. Those that may cost time on the model are POST; they are accepted, counted, and drained.

        Raises:
            RequestError: it is refused.
            ClientGoneError: the client left before it was answered.
        """
        if request.method != "POST":
            await connection.read_body(request, MAX_HEAD_BYTES)
            await connection.send(self._get(request))
            return
        segment = request.path == _SEGMENT_PATH
        with self._metrics.count_request("page" if segment else "http") as record, self._service.accepted():
            body = await connection.read_body(request, self._max_photo_bytes if segment else self._max_infer_bytes)
            response = await connection.while_connected(self._post(request, body))
            await connection.send(response)
            record.outcome = outcome_of(response.status)

    def _get(self, request: HttpRequest) -> HttpResponse:
        model_path = _MODEL_PATH.fullmatch(request.path)
        if request.method not in {"GET", "HEAD"}:
            raise self._no_route(request)
        if request.path in self._get_routes:
            return self._get_routes[request.path](request)
        if model_path is None or model_path[2] == "/infer":
            raise self._no_route(request)
        self._service.check_name(model_path[1])
        if model_path[2] is None:
            return json_response(self._service.metadata())
        self._service.check_ready()
        return json_response({"name": self._service.name, "ready": True})

    def _get_ready(self, _: HttpRequest) -> HttpResponse:
        self._service.check_ready()
        return json_response({"ready": True})

    def _get_metrics(self, request: HttpRequest) -> HttpResponse:
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        return HttpResponse(HTTPStatus.OK, encode(self._metrics.registry), {"content-type": content_type})

    async def _post(self, request: HttpRequest, body: memoryview) -> HttpResponse:
        if request.path == _SEGMENT_PATH:
            return await self._page.segment(body)
        model_path = _MODEL_PATH.fullmatch(request.path)
        if model_path is None or model_path[2] != "/infer":
            raise self._no_route(request)
        self._service.check_name(model_path[1])
        return await self._infer(body, request.headers.get(JSON_LENGTH_HEADER))

    async def _infer(self, body: memoryview, json_length: str | None) -> HttpResponse:
        """Return labels. Numbers as JSON take long to read and to write, so another thread does that."""
        if json_length is None:
            request, pixels = await run_in_thread(self._executor, lambda: self._decode(body, None))
        else:
            request, pixels = self._decode(body, json_length)
        result = await self._service.queue.submit(pixels)
        encode = partial(result.encode, self._service.name, request.id, binary=request.binary)
        content, headers = encode() if request.binary else await run_in_thread(self._executor, encode)
        return HttpResponse(HTTPStatus.OK, content, headers)

    def _decode(self, body: memoryview, json_length: str | None) -> tuple[InferRequest, Pixels]:
        request = decode_request(body, json_length)
        return request, self._service.interface.pixels(request.tensors)

    def _no_route(self, request: HttpRequest) -> RequestError:
        known = request.path in {*self._get_routes, _SEGMENT_PATH} or _MODEL_PATH.fullmatch(request.path)
        status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
        address = f"{request.method} {short_repr(request.path)}"
        return RequestError(status, f"{address}: {status.phrase}", "The model is below /v2/models.")
