"""The HTTP application but for inference: KServe's endpoints for health and metadata, and metrics."""

from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request, Response
from prometheus_client import exposition
from starlette.exceptions import HTTPException
from starlette.responses import JSONResponse

from fcn_deploy.serving.metrics import Metrics
from fcn_deploy.serving.model import ServerPlane
from fcn_deploy.serving.refusals import Refusal, failure, shown
from fcn_deploy.serving.sdk import ModelNotFound, ServerNotReady, V2Endpoints
from fcn_deploy.serving.sdk import v2_datamodels as answers

_STATUS = {
    ModelNotFound: HTTPStatus.NOT_FOUND,
    ServerNotReady: HTTPStatus.SERVICE_UNAVAILABLE,
}


def application(plane: ServerPlane, metrics: Metrics) -> FastAPI:
    """All of it but the page, which adds itself."""
    app = FastAPI(title="fcn-deploy", openapi_url=None, docs_url=None, redoc_url=None)
    ends = V2Endpoints(plane)
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

    def failed(request: Request, _: Any) -> Response:
        return refused(request, failure())

    app.add_exception_handler(Refusal, refused)
    for kind in _STATUS:
        app.add_exception_handler(kind, known)
    app.add_exception_handler(HTTPException, missing)
    app.add_exception_handler(Exception, failed)
