"""The gRPC server: KServe's answers on health and metadata, inference from the messages themselves.

It runs in threads. gRPC's asyncio server hands every message from a polling thread to the loop and back, which takes
2 ms more for a request of 500x500 pixels than all of the rest.
"""

import asyncio
import contextlib
import logging
from collections.abc import Awaitable, Callable, Iterator, Sequence
from concurrent.futures import CancelledError, ThreadPoolExecutor
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any

import grpc

from fcn_deploy.serving.admission import Admission
from fcn_deploy.serving.inference import known_model
from fcn_deploy.serving.metrics import GONE, OK, Metrics
from fcn_deploy.serving.model import ServerPlane, response_for
from fcn_deploy.serving.queue import RunQueue
from fcn_deploy.serving.refusals import Refusal, bad_request, failure
from fcn_deploy.serving.sdk import InferenceServicer, ModelNotFound, add_GRPCInferenceServiceServicer_to_server
from fcn_deploy.serving.tensors import Interface, Tensor
from fcn_deploy.serving.wire import check_outputs

_LOGGER = logging.getLogger("fcn_deploy.serving")
_CODES = {
    HTTPStatus.BAD_REQUEST: grpc.StatusCode.INVALID_ARGUMENT,
    HTTPStatus.NOT_FOUND: grpc.StatusCode.NOT_FOUND,
    HTTPStatus.SERVICE_UNAVAILABLE: grpc.StatusCode.UNAVAILABLE,
    HTTPStatus.INTERNAL_SERVER_ERROR: grpc.StatusCode.INTERNAL,
}
# A message's own fields, names and parameters among them.
_MESSAGE_OVERHEAD = 65_536
# Of a value that is not sent as a byte but as a varint.
_BYTES_PER_VARINT = 2
_FRAME_BYTES = 1_048_576
# Beside the threads of requests that wait: for those that run, are refused, or ask for something else.
_SPARE_THREADS = 32


@dataclass(frozen=True)
class Parts:
    """What the servicer answers from.

    Attributes:
        plane: KServe's data plane.
        interface: what requests have to look like.
        queue: where they are run.
        admission: who is let in.
        metrics: where they are counted.
    """

    plane: ServerPlane
    interface: Interface
    queue: RunQueue
    admission: Admission
    metrics: Metrics


class Servicer:
    """Answers over gRPC what the HTTP application answers; its methods have the protocol's names."""

    def __init__(self, parts: Parts) -> None:
        self._parts = parts
        ends = InferenceServicer(parts.plane, None)
        self.ServerLive = self._on_loop(ends.ServerLive)
        self.ServerReady = self._on_loop(ends.ServerReady)
        self.ServerMetadata = self._on_loop(ends.ServerMetadata)
        self.ModelReady = self._on_loop(ends.ModelReady)
        self.ModelMetadata = self._on_loop(ends.ModelMetadata)
        self.RepositoryModelLoad = self.RepositoryModelUnload = _refuse_change

    def ModelInfer(self, request: Any, context: grpc.ServicerContext) -> Any:  # noqa: N802 - the protocol's name
        """Labels of a request's pixels."""
        parts = self._parts
        with _errors_told(context), parts.metrics.request("grpc") as counted, parts.admission.entered():
            known_model(parts.plane, request.model_name)
            check_outputs([output.name for output in request.outputs])
            done = parts.queue.submit(parts.interface.pixels(_tensors(request)))
            context.add_callback(done.cancel)
            try:
                answer = done.result()
            except CancelledError:
                counted.outcome = GONE
                raise
            counted.outcome = OK
            # An array always becomes raw contents; asked for them, KServe would look for a list.
            return response_for(request.model_name, answer, request.id, binary=False).to_grpc()

    def _on_loop(self, answer: Callable[[Any, Any], Awaitable[Any]]) -> Callable[[Any, grpc.ServicerContext], Any]:
        loop = asyncio.get_running_loop()

        async def answered(request: Any) -> Any:
            return await answer(request, None)

        def method(request: Any, context: grpc.ServicerContext) -> Any:
            with _errors_told(context):
                return asyncio.run_coroutine_threadsafe(answered(request), loop).result()

        return method


def _refuse_change(_: Any, context: grpc.ServicerContext) -> None:
    context.abort(grpc.StatusCode.UNIMPLEMENTED, "this server has one model, which is always loaded.")


@contextlib.contextmanager
def _errors_told(context: grpc.ServicerContext) -> Iterator[None]:
    """End the call with a status when the block raises; no traceback is shown to anyone."""
    try:
        yield
        return
    except Refusal as error:
        refusal = error
    except ModelNotFound as error:
        refusal = Refusal(HTTPStatus.NOT_FOUND, str(error).rstrip("."), "Ask for the server's models over HTTP.")
    except CancelledError:
        refusal = failure()  # nobody is there to read it
    except Exception as error:
        _LOGGER.error("gRPC: %s: %s", type(error).__name__, error)
        refusal = failure()
    context.abort(_CODES[refusal.status], str(refusal))


def _tensors(request: Any) -> Sequence[Tensor]:
    raw = request.raw_input_contents
    if raw and len(raw) != len(request.inputs):
        raise bad_request(f"{len(request.inputs)} inputs and {len(raw)} raw contents", "Send as many.")
    return [
        Tensor(given.name, given.datatype, given.shape, raw[n] if raw else None, given.contents.uint_contents)
        for n, given in enumerate(request.inputs)
    ]


def grpc_server(parts: Parts, queue_size: int) -> grpc.Server:
    """A server that is not listening yet."""
    max_bytes = _BYTES_PER_VARINT * parts.interface.tensor_bytes + _MESSAGE_OVERHEAD
    options = [
        ("grpc.max_receive_message_length", max_bytes),
        ("grpc.max_send_message_length", -1),
        # Otherwise two servers may listen on one port, and each gets some of the requests.
        ("grpc.so_reuseport", 0),
        # An input comes in one window and few frames instead of many of 16 KB.
        ("grpc.http2.lookahead_bytes", max_bytes),
        ("grpc.http2.max_frame_size", _FRAME_BYTES),
    ]
    threads = queue_size + _SPARE_THREADS
    server = grpc.server(
        ThreadPoolExecutor(threads, thread_name_prefix="grpc"), options=options, maximum_concurrent_rpcs=2 * threads
    )
    add_GRPCInferenceServiceServicer_to_server(Servicer(parts), server)
    return server
