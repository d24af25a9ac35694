"""What the HTTP server answers at each address: the protocol, metrics, and the page on which a person drops a photo."""

import io
import re
from collections.abc import Callable, Coroutine
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from http import HTTPStatus
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from prometheus_client import exposition

from fcn_deploy.errors import ImageError
from fcn_deploy.images import Labels, Pixels, Placement, class_shares, decode_image, label_image, place
from fcn_deploy.serving.http import MAX_HEAD_BYTES, HttpConnection, HttpRequest, HttpResponse, json_response
from fcn_deploy.serving.model import ModelService, run_in_thread
from fcn_deploy.serving.options import ServeOptions
from fcn_deploy.serving.protocol import (
    JSON_LENGTH_HEADER,
    SERVER_METADATA,
    RequestError,
    bad_request,
    short_repr,
    unavailable,
)

_MODEL_PATH = re.compile(r"/v2/models/([^/]+)(?:/ready|/infer)?")
_SEGMENT_PATH = "/segment"
_MILLION = 1_000_000
# Bytes of a value as JSON, with a comma, a space, and some brackets.
_JSON_BYTES_PER_VALUE = 6
# Photos that wait to be decoded, beside the one that is.
_MAX_WAITING_PHOTOS = 8
_STATIC = Path(__file__).parent / "static"
_PAGE_FILES = {"/": ("index.html", "html"), "/page.css": ("page.css", "css"), "/page.js": ("page.js", "javascript")}
_PAGE_HEADERS = {
    # Nothing but this server's own files, and pictures the page makes itself.
    "content-security-policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src blob: data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "x-content-type-options": "nosniff",
    "referrer-policy": "no-referrer",
    "cache-control": "no-cache",
}


class Routes:
    """The addresses of one server.

    One thread decodes photos, because each may take hundreds of megabytes, and another one JSON tensors.
    """

    def __init__(self, service: ModelService, options: ServeOptions) -> None:
        self._photo_reader = ThreadPoolExecutor(1, thread_name_prefix="photos")
        self._json_reader = ThreadPoolExecutor(1, thread_name_prefix="json")
        self._service = service
        self._options = options
        self._max_photo_bytes = options.max_photo_mb * _MILLION
        self._max_photo_pixels = options.max_photo_mpx * _MILLION
        self._max_infer_bytes = _JSON_BYTES_PER_VALUE * service.interface.tensor_bytes + MAX_HEAD_BYTES
        self._photos = 0
        model_path = f"/v2/models/{service.name}"
        self._get_routes: dict[str, Callable[[HttpRequest], HttpResponse]] = {
            "/v2": lambda _: json_response(SERVER_METADATA),
            "/v2/models": lambda _: json_response({"models": [service.name]}),
            "/v2/health/live": lambda _: json_response({"live": True}),
            "/v2/health/ready": lambda _: self._ready(),
            model_path: lambda _: json_response(service.metadata()),
            f"{model_path}/ready": lambda _: self._ready(name=service.name),
            "/metrics": self._metrics,
            "/facts": self._facts,
            **dict.fromkeys(_PAGE_FILES, _page_file),
        }
        self._post_routes: dict[str, Callable[[HttpRequest, memoryview], Coroutine[Any, Any, HttpResponse]]] = {
            f"{model_path}/infer": self._infer,
            _SEGMENT_PATH: self._segment,
        }

    async def handle(self, connection: HttpConnection, request: HttpRequest) -> None:
        """Answer one request. Those that may cost time on the model are POST; they are accepted, counted, and drained.

        Raises:
            RequestError: it is refused.
            ClientGoneError: the client left before it was answered.
        """
        self._check_host(request)
        if request.method != "POST":
            await connection.read_body(request, MAX_HEAD_BYTES)
            if request.method not in {"GET", "HEAD"} or request.path not in self._get_routes:
                raise self._no_route(request)
            await connection.send(self._get_routes[request.path](request))
            return
        is_photo = request.path == _SEGMENT_PATH
        with self._service.accepted("page" if is_photo else "http"):
            body = await connection.read_body(request, self._max_photo_bytes if is_photo else self._max_infer_bytes)
            if request.path not in self._post_routes:
                raise self._no_route(request)
            await connection.send(await connection.while_connected(self._post_routes[request.path](request, body)))

    def close(self) -> None:
        """Drop requests that have not been decoded, and end the threads."""
        for executor in (self._photo_reader, self._json_reader):
            executor.shutdown(cancel_futures=True)

    def _check_host(self, request: HttpRequest) -> None:
        host = request.headers.get("host", "")  # browsers always send one; HTTP/1.0 has none
        try:
            name = urlsplit(f"//{host}").hostname or ""
        except ValueError:
            name = host
        if host and not self._options.allows_host(name):
            raise RequestError(
                HTTPStatus.MISDIRECTED_REQUEST,
                f"host {short_repr(name)} is not one of this server's",
                "Start it with --allow-host and this name.",
            )

    def _no_route(self, request: HttpRequest) -> RequestError:
        if model_path := _MODEL_PATH.fullmatch(request.path):
            self._service.check_name(model_path[1])
        known = request.path in self._get_routes or request.path in self._post_routes
        status = HTTPStatus.METHOD_NOT_ALLOWED if known else HTTPStatus.NOT_FOUND
        address = f"{request.method} {short_repr(request.path)}"
        return RequestError(status, f"{address}: {status.phrase}", "The model is below /v2/models.")

    def _ready(self, **facts: str) -> HttpResponse:
        self._service.check_ready()
        return json_response({**facts, "ready": True})

    def _metrics(self, request: HttpRequest) -> HttpResponse:
        encode, content_type = exposition.choose_encoder(request.headers.get("accept", ""))
        return HttpResponse(HTTPStatus.OK, encode(self._service.metrics.registry), {"content-type": content_type})

    async def _infer(self, request: HttpRequest, body: memoryview) -> HttpResponse:
        """Return labels. Numbers as JSON take long to read and to write, so another thread does that."""
        json_length = request.headers.get(JSON_LENGTH_HEADER)
        decode = partial(self._service.interface.decode, body, json_length)
        decoded = await run_in_thread(self._json_reader, decode) if json_length is None else decode()
        result = await self._service.queue.submit(decoded.pixels)
        encode = partial(result.encode, self._service.name, decoded.id, binary=decoded.binary)
        content, headers = encode() if decoded.binary else await run_in_thread(self._json_reader, encode)
        return HttpResponse(HTTPStatus.OK, content, headers)

    def _facts(self, _: HttpRequest) -> HttpResponse:
        """Return what the page says about the model and about photos."""
        segmenter = self._service.segmenter
        return json_response({
            "name": self._service.name,
            "network": str(segmenter.info.network),
            "untrained": segmenter.info.provenance.untrained,
            "height": segmenter.height,
            "width": segmenter.width,
            "max_bytes": self._max_photo_bytes,
            "max_pixels": self._max_photo_pixels,
        }, _PAGE_HEADERS)  # fmt: skip

    async def _segment(self, _: HttpRequest, body: memoryview) -> HttpResponse:
        """Return a photo's labels as a PNG of the photo's size, and each class's share."""
        if not body:
            raise bad_request("the body is empty", "Post a photo's file.")
        if self._photos > _MAX_WAITING_PHOTOS:
            raise unavailable(f"{self._photos} photos are being worked on, and at most {_MAX_WAITING_PHOTOS} may wait")
        self._photos += 1
        try:
            canvas, placement = await run_in_thread(self._photo_reader, lambda: self._fit(bytes(body)))
            labels = (await self._service.queue.submit(canvas[None])).labels[0]
            facts = await run_in_thread(self._photo_reader, lambda: self._describe(placement.restore(labels)))
        except ImageError as error:
            raise bad_request(error.problem, error.remedy) from error
        finally:
            self._photos -= 1
        return json_response(facts, _PAGE_HEADERS)

    def _fit(self, data: bytes) -> tuple[Pixels, Placement]:
        # The photo itself, which may be a thousand times as large, is not kept while others are run.
        photo, canvas = decode_image(data, "you sent", self._max_photo_pixels), self._service.segmenter.empty_canvas()
        return place(photo, canvas, keep_aspect=self._options.keep_aspect)

    def _describe(self, labels: Labels) -> dict[str, Any]:
        info, png = self._service.segmenter.info, io.BytesIO()
        label_image(labels, info).save(png, "PNG")
        return {
            "height": labels.shape[0],
            "width": labels.shape[1],
            "untrained": info.provenance.untrained,
            "classes": [
                {"name": info.class_names[k], "colour": "#{:02x}{:02x}{:02x}".format(*info.palette[k]), "share": share}
                for k, share in class_shares(labels)
            ],
            "labels_png": png.getvalue(),  # in JSON, bytes are base64
        }


def _page_file(request: HttpRequest) -> HttpResponse:
    name, kind = _PAGE_FILES[request.path]
    headers = _PAGE_HEADERS | {"content-type": f"text/{kind}; charset=utf-8"}
    return HttpResponse(HTTPStatus.OK, (_STATIC / name).read_bytes(), headers)
