"""The gRPC server, on the Open Inference Protocol's messages as Triton's client package defines them."""

import logging
from functools import partial
from http import HTTPStatus
from typing import Any

import grpc
from grpc import aio
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

from fcn_deploy.serving.metrics import OK, ServerMetrics
from fcn_deploy.serving.model import ModelService, server_metadata
from fcn_deploy.serving.protocol import (
    InputTensor,
    RequestError,
    bad_request,
    check_outputs,
    server_failure,
)

_LOGGER = logging.getLogger("fcn_deploy.serving")
_CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}
# Of a message's other fields, names and parameters among them.
_MESSAGE_OVERHEAD_BYTES = 65_536
# Of a value that is not sent as a byte but as a varint.
_VARINT_BYTES = 2
_MAX_CONCURRENT_CALLS = 256
_FRAME_BYTES = 1_048_576


class GrpcService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # it has no types
    """Answers over gRPC what the HTTP server answers; other methods are not implemented."""

    def __init__(self, service: ModelService, metrics: ServerMetrics) -> None:
        self._service = service
        self._metrics = metrics

    async def ServerLive(self, *_: Any) -> Any:  # noqa: N802 - the protocol's names
        """Return that the process lives."""
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, *_: Any) -> Any:  # noqa: N802
        """Return whether requests are accepted."""
        return messages.ServerReadyResponse(ready=self._service.ready)

    async def ServerMetadata(self, *_: Any) -> Any:  # noqa: N802
        """Return name, version and extensions of the server."""
        return messages.ServerMetadataResponse(**server_metadata())

    async def ModelReady(self, request: Any, _: Any) -> Any:  # noqa: N802
        """Return whether requests to a model are accepted."""
        self._service.check_name(request.name)
        return messages.ModelReadyResponse(ready=self._service.ready)

    async def ModelMetadata(self, request: Any, _: Any) -> Any:  # noqa: N802
        """Return inputs and outputs of a model."""
        self._service.check_name(request.name)
        return messages.ModelMetadataResponse(**self._service.metadata())

    async def ModelInfer(self, request: Any, _: Any) -> Any:  # noqa: N802
        """Return the labels of a request's pixels."""
        service = self._service
        with self._metrics.count_request("grpc") as record, service.accepted():
            service.check_name(request.model_name)
            check_outputs([output.name for output in request.outputs])
            result = await service.queue.submit(service.interface.pixels(_tensors(request)))
            response = messages.ModelInferResponse(
                **result.describe(service.name, request.id), raw_output_contents=[result.labels.tobytes()]
            )
            for name, value in result.parameters().items():
                response.parameters[name].int64_param = value
            record.outcome = OK
            return response


def _tensors(request: Any) -> list[InputTensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad_request(f"{len(request.inputs)} inputs and {len(raw)} raw contents", "Send as many of each.")
    try:
        values = raw or [bytes(tensor.contents.uint_contents) for tensor in request.inputs]
    except ValueError:
        raise bad_request("values are not all whole numbers from 0 to 255", "Send them as files have them.") from None
    return [
        InputTensor(tensor.name, tensor.datatype, tensor.shape, value)
        for tensor, value in zip(request.inputs, values, strict=True)
    ]


class _ErrorsToStatus(aio.ServerInterceptor):  # type: ignore[misc] # it has no types
    """Ends calls that raise with a status, so that no client sees a traceback."""

    async def intercept_service(self, continuation: Any, call: Any) -> Any:
        """Return the handler of a method with its errors turned into statuses."""
        handler = await continuation(call)
        if handler is None or handler.unary_unary is None:
            return handler
        answer = partial(_answer, handler.unary_unary, call.method)
        return grpc.unary_unary_rpc_method_handler(answer, handler.request_deserializer, handler.response_serializer)


async def _answer(method: Any, name: str, request: Any, context: Any) -> Any:
    try:
        return await method(request, context)
    except RequestError as error:
        await context.abort(_CODES[error.status], str(error))
    except NotImplementedError:
        text = "this server has one model, which is always loaded; it answers metadata, health and inference."
        await context.abort(grpc.StatusCode.UNIMPLEMENTED, text)
    except Exception as error:
        _LOGGER.error("%s: %s: %s", name, type(error).__name__, error)
        await context.abort(grpc.StatusCode.INTERNAL, str(server_failure()))


def create_grpc_server(service: ModelService, metrics: ServerMetrics) -> aio.Server:
    """Return a server that is not listening yet."""
    max_bytes = _VARINT_BYTES * service.interface.tensor_bytes + _MESSAGE_OVERHEAD_BYTES
    options = [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", -1),
        # Otherwise two servers may listen on one port, and each gets some of the requests.
        ("grpc.so_reuseport", 0),
        # An input comes in one window and few frames instead of many of 16 KB.
        ("grpc.http2.lookahead_bytes", max_bytes),
        ("grpc.http2.max_frame_size", _FRAME_BYTES),
    ]
    server = aio.server(
        interceptors=[_ErrorsToStatus()], options=options, maximum_concurrent_rpcs=_MAX_CONCURRENT_CALLS
    )  # fmt: skip
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcService(service, metrics), server)
    return server
