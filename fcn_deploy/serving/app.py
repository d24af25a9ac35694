"""The HTTP application: KServe's endpoints for health and metadata, inference, the page, and metrics."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import orjson
from fastapi import FastAPI, Request, Response
from prometheus_client import exposition
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from fcn_deploy.serving.metrics import Metrics
from fcn_deploy.serving.model import ServerPlane, request_for
from fcn_deploy.serving.refusals import Refusal, shown
from fcn_deploy.serving.sdk import InferResponse, InvalidInput, ModelNotFound, ServerNotReady, V2Endpoints
from fcn_deploy.serving.sdk import v2_datamodels as answers
from fcn_deploy.serving.tensors import Interface
from fcn_deploy.serving.wire import JSON_LENGTH_HEADER, Call, read_call

_STATUS = {
    InvalidInput: HTTPStatus.BAD_REQUEST,
    ModelNotFound: HTTPStatus.NOT_FOUND,
    ServerNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
}
_JSON = "application/json"
_BINARY = "application/octet-stream"


@dataclass(frozen=True)
class Inference:
    """Answers the protocol's requests to infer.

    Attributes:
        name: of the model.
        plane: KServe's data plane.
        interface: what requests have to look like.
        readers: where JSON tensors are read and written, which takes long.
    """

    name: str
    plane: ServerPlane
    interface: Interface
    readers: Executor

    async def infer(self, request: Request) -> Response:
        """POST /v2/models/NAME/infer."""
        name = request.path_params["model_name"]
        self.plane.get_model_from_registry(name)
        body, json_length = await request.body(), request.headers.get(JSON_LENGTH_HEADER)
        call, pixels = await self._aside(json_length is None, lambda: self._read(body, json_length))
        response, _ = await self.plane.infer(name, request_for(name, pixels, call.id, binary=call.binary))
        written: Response = await self._aside(not call.binary, lambda: _written(response))
        return written

    def _read(self, body: bytes, json_length: str | None) -> tuple[Call, Any]:
        call = read_call(body, json_length)
        return call, self.interface.pixels(call.tensors)

    async def _aside(self, takes_long: bool, work: Callable[[], Any]) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self.readers, work) if takes_long else work()


def _written(response: InferResponse) -> Response:
    content, json_length = response.to_rest()
    if json_length is None:
        return Response(orjson.dumps(content), media_type=_JSON)
    return Response(content, headers={JSON_LENGTH_HEADER: str(json_length)}, media_type=_BINARY)


def application(inference: Inference, metrics: Metrics) -> FastAPI:
    """All of it but the page."""
    app = FastAPI(title="fcn-deploy", openapi_url=None, docs_url=None, redoc_url=None)
    # Routes are tried in this order.
    app.add_route("/v2/models/{model_name}/infer", inference.infer, methods=["POST"])
    ends = V2Endpoints(inference.plane)
    for path, answer, model in (
        ("/v2", ends.metadata, answers.ServerMetadataResponse),
        ("/v2/health/live", ends.live, answers.ServerLiveResponse),
        ("/v2/health/ready", ends.ready, answers.ServerReadyResponse),
        ("/v2/models", ends.models, answers.ListModelsResponse),
        ("/v2/models/{model_name}", _versionless(ends.model_metadata), answers.ModelMetadataResponse),
        ("/v2/models/{model_name}/ready", _versionless(_model_ready(ends)), answers.ModelReadyResponse),
    ):
        app.add_api_route(path, answer, methods=["GET"], response_model=model)
    app.add_route("/metrics", _metrics_of(metrics), methods=["GET"])
    _add_error_handlers(app)
    return app


def _versionless(answer: Callable[[str], Any]) -> Callable[[str], Any]:
    """KServe's endpoint without its query parameter for a version, of which there is one."""

    async def without(model_name: str) -> Any:
        return await answer(model_name)

    return without


def _model_ready(ends: V2Endpoints) -> Callable[[str], Any]:
    async def ready(model_name: str) -> Any:
        if not await ends.dataplane.model_ready(model_name):
            raise ServerNotReady
        return await ends.model_ready(model_name)

    return ready


def _metrics_of(metrics: Metrics) -> Callable[[Request], Response]:
    def answer(request: Request) -> Response:
        encode, kind = exposition.choose_encoder(request.headers.get("accept", ""))
        return Response(encode(metrics.registry), headers={"content-type": kind})

    return answer


def _add_error_handlers(app: FastAPI) -> None:
    """Every error is JSON with one member, `error`, and none shows a traceback."""

    def refused(_: Request, refusal: Any) -> Response:
        return JSONResponse({"error": str(refusal)}, refusal.status, refusal.headers)

    def known(_: Request, error: Any) -> Response:
        return JSONResponse({"error": str(error)}, _STATUS[type(error)])

    def missing(request: Request, error: Any) -> Response:
        text = f"{request.method} {shown(request.url.path)}: {error.detail}. The model is below /v2/models."
        return JSONResponse({"error": text}, error.status_code)

    def failed(_: Request, __: Any) -> Response:
        text = "the server failed at this request. Its log says more."
        return JSONResponse({"error": text}, HTTPStatus.INTERNAL_SERVER_ERROR)

    app.add_exception_handler(Refusal, refused)
    for kind in _STATUS:
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, missing)
    app.add_exception_handler(Exception, failed)
