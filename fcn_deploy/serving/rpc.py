"""The gRPC server: KServe's servicer for health and metadata, inference from the messages themselves."""

import logging
from collections.abc import Sequence
from http import HTTPStatus
from typing import Any, NoReturn

import grpc
from grpc import aio
from grpc_interceptor.server import AsyncServerInterceptor

from fcn_deploy.serving.admission import Admission
from fcn_deploy.serving.inference import known_model
from fcn_deploy.serving.metrics import OK, Metrics
from fcn_deploy.serving.model import ServerPlane, request_for
from fcn_deploy.serving.refusals import Refusal, bad_request, failure
from fcn_deploy.serving.sdk import (
    InferenceServicer,
    ModelNotFound,
    add_GRPCInferenceServiceServicer_to_server,
)
from fcn_deploy.serving.tensors import Interface, Tensor
from fcn_deploy.serving.wire import check_outputs

_LOGGER = logging.getLogger("fcn_deploy.serving")
_CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
}
# A message's own fields, names and parameters among them.
_MESSAGE_OVERHEAD = 65_536
# Of a value that is not sent as a byte but as a varint.
_BYTES_PER_VARINT = 2
_MAX_CONCURRENT = 256
_FRAME_BYTES = 1_048_576


class Servicer(InferenceServicer):  # type: ignore[misc] # KServe has no types
    """Answers over gRPC what the HTTP application answers."""

    def __init__(self, plane: ServerPlane, interface: Interface, admission: Admission, metrics: Metrics) -> None:
        super().__init__(plane, None)
        self._interface = interface
        self._admission = admission
        self._metrics = metrics

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802, ARG002 - the protocol's names
        """Labels of a request's pixels."""
        with self._metrics.request("grpc") as counted, self._admission.entered():
            model = known_model(self._data_plane, request.model_name)
            check_outputs([output.name for output in request.outputs])
            pixels = self._interface.pixels(_tensors(request))
            # An array always becomes raw contents; asked for them, KServe would look for a list.
            asked = request_for(request.model_name, pixels, request.id, binary=False)
            response = await model.predict(asked)
            counted.outcome = OK
            return response.to_grpc()

    async def RepositoryModelLoad(self, *_: Any) -> NoReturn:  # noqa: N802
        """Refused: there is one model."""
        raise NotImplementedError

    async def RepositoryModelUnload(self, *_: Any) -> NoReturn:  # noqa: N802
        """Refused: there is one model."""
        raise NotImplementedError


def _tensors(request: Any) -> Sequence[Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad_request(f"{len(request.inputs)} inputs and {len(raw)} raw contents", "Send as many.")
    return [
        Tensor(given.name, given.datatype, given.shape, raw[n] if raw else None, given.contents.uint_contents)
        for n, given in enumerate(request.inputs)
    ]


class ErrorsToStatus(AsyncServerInterceptor):
    """Turns what is raised into gRPC's status, so that no traceback is shown to anyone."""

    async def intercept(self, method: Any, request_or_iterator: Any, context: Any, method_name: str) -> Any:
        """Call the method, and end the call with a status when it raises."""
        try:
            return await method(request_or_iterator, context)
        except Refusal as refusal:
            await context.abort(_CODES[refusal.status], str(refusal))
        except ModelNotFound as error:
            await context.abort(grpc.StatusCode.NOT_FOUND, str(error))
        except NotImplementedError:
            await context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server has one model, which is always loaded.")
        except Exception as error:
            _LOGGER.error("%s: %s: %s", method_name, type(error).__name__, error)
            await context.abort(grpc.StatusCode.INTERNAL, str(failure()))


def max_message_bytes(interface: Interface) -> int:
    """Of a request that sends the largest input one value at a time."""
    return _BYTES_PER_VARINT * interface.tensor_bytes + _MESSAGE_OVERHEAD


def grpc_server(servicer: Servicer, max_bytes: int) -> aio.Server:
    """A server that is not listening yet."""
    options = [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", -1),
        # Otherwise two servers may listen on one port, and each gets some of the requests.
        ("grpc.so_reuseport", 0),
        # An input comes in one window and few frames instead of many of 16 KB.
        ("grpc.http2.lookahead_bytes", max_bytes),
        ("grpc.http2.max_frame_size", _FRAME_BYTES),
    ]
    server = aio.server(interceptors=[ErrorsToStatus()], options=options, maximum_concurrent_rpcs=_MAX_CONCURRENT)
    add_GRPCInferenceServiceServicer_to_server(servicer, server)
    return server
