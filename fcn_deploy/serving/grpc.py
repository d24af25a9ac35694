"""The gRPC server, on the Open Inference Protocol's messages as Triton's client package defines them."""

from functools import partial
from http import HTTPStatus
from typing import Any

import grpc
from grpc import aio
from tritonclient.grpc import service_pb2 as messages
from tritonclient.grpc import service_pb2_grpc

from fcn_deploy.serving.model import ModelService
from fcn_deploy.serving.protocol import SERVER_METADATA, RequestError, bad_request, check_outputs, server_failure

_CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
    HTTPStatus.NOT_IMPLEMENTED: grpc.StatusCode.UNIMPLEMENTED,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}
# Bytes for a message's other fields, such as names and parameters.
_MESSAGE_OVERHEAD_BYTES = 65_536
# Bytes of a value that is sent as a varint instead of a byte.
_VARINT_BYTES = 2
_MAX_CONCURRENT_CALLS = 256
_FRAME_BYTES = 1_048_576


# ruff: noqa: N802 - the methods have the protocol's names
class GrpcService(service_pb2_grpc.GRPCInferenceServiceServicer):  # type: ignore[misc] # it has no types
    """Answers over gRPC what the HTTP server answers; other methods are not implemented."""

    def __init__(self, service: ModelService) -> None:
        self._service = service

    async def ServerLive(self, *_: Any) -> Any:
        """Report that the process is alive."""
        return messages.ServerLiveResponse(live=True)

    async def ServerReady(self, *_: Any) -> Any:
        """Return whether requests are accepted."""
        return messages.ServerReadyResponse(ready=not self._service.unready)

    async def ServerMetadata(self, *_: Any) -> Any:
        """Return name, version and extensions of the server."""
        return messages.ServerMetadataResponse(**SERVER_METADATA)

    async def ModelReady(self, request: Any, _: Any) -> Any:
        """Return whether requests to a model are accepted."""
        self._service.check_name(request.name)
        return messages.ModelReadyResponse(ready=not self._service.unready)

    async def ModelMetadata(self, request: Any, _: Any) -> Any:
        """Return inputs and outputs of a model."""
        self._service.check_name(request.name)
        return messages.ModelMetadataResponse(**self._service.metadata())

    async def ModelInfer(self, request: Any, _: Any) -> Any:
        """Return the labels of a request's pixels."""
        service = self._service
        with service.accepted("grpc"):
            service.check_name(request.model_name)
            check_outputs(request.outputs)
            pixels = service.interface.pixels(request.inputs, partial(_values, raw=request.raw_input_contents))
            result = await service.queue.submit(pixels)
            response = result.describe(service.name, request.id)
            response["parameters"] = {
                name: messages.InferParameter(int64_param=value) for name, value in response["parameters"].items()
            }
            return messages.ModelInferResponse(**response, raw_output_contents=[result.labels.tobytes()])


def _values(tensor: Any, raw: list[bytes]) -> bytes:
    """Return the values of a request's only input, which come in it or in the list beside it."""
    if len(raw) > 1:
        raise bad_request(f"1 input and {len(raw)} raw contents", "Send one for each input.")
    return raw[0] if raw else bytes(tensor.contents.uint_contents)


class _ErrorsToStatus(aio.ServerInterceptor):  # type: ignore[misc] # it has no types
    """Turns exceptions of calls into statuses, so that no client sees a traceback."""

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
        refusal = error
    except NotImplementedError:
        problem = "this server has one model, which is always loaded"
        refusal = RequestError(HTTPStatus.NOT_IMPLEMENTED, problem, "It answers metadata, health and inference.")
    except Exception as error:
        refusal = server_failure(name, error)
    return await context.abort(_CODES[refusal.status], str(refusal))


def create_grpc_server(service: ModelService) -> aio.Server:
    """Return a server that is not listening yet."""
    max_bytes = _VARINT_BYTES * service.interface.tensor_bytes + _MESSAGE_OVERHEAD_BYTES
    options = [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", -1),
        # Otherwise two servers may listen on one port, and each gets some of the requests.
        ("grpc.so_reuseport", 0),
        # Inputs arrive in one window and few frames instead of many frames of 16 KB.
        ("grpc.http2.lookahead_bytes", max_bytes),
        ("grpc.http2.max_frame_size", _FRAME_BYTES),
    ]
    interceptors = [_ErrorsToStatus()]
    server = aio.server(interceptors=interceptors, options=options, maximum_concurrent_rpcs=_MAX_CONCURRENT_CALLS)
    service_pb2_grpc.add_GRPCInferenceServiceServicer_to_server(GrpcService(service), server)
    return server
