"""One server on one event loop: put together, started, drained, stopped."""

import asyncio
import contextlib
import logging
import socket
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import uvicorn
from grpc import aio

from fcn_deploy.segmentation import Segmenter
from fcn_deploy.serving import rpc
from fcn_deploy.serving.admission import Admission, State
from fcn_deploy.serving.app import application
from fcn_deploy.serving.bodies import Bodies
from fcn_deploy.serving.connection import BoundedConnection
from fcn_deploy.serving.gate import Gate
from fcn_deploy.serving.inference import Inference
from fcn_deploy.serving.listening import Listening, joined, listen
from fcn_deploy.serving.metrics import Metrics
from fcn_deploy.serving.model import ServedModel, ServerPlane
from fcn_deploy.serving.options import ServeOptions, name_from
from fcn_deploy.serving.page import Page
from fcn_deploy.serving.queue import RunQueue
from fcn_deploy.serving.tensors import Interface

_BYTES_PER_MB = 1_000_000
# Of a value as JSON, with a comma, a space, and a bracket now and then.
_BYTES_PER_NUMBER = 6
_HEAD_BYTES = 65_536
# Open connections, of which each may hold an answer that its client does not read.
_MAX_CONNECTIONS = 512
_LAST_WORDS_S = 1
_POLL_S = 0.005


class _Http(uvicorn.Server):
    """Uvicorn, which here leaves signals to the one who started it."""

    @contextlib.contextmanager
    def capture_signals(self) -> Iterator[None]:
        yield


class Service:
    """A server for one artifact, to be made and used on a running event loop.

    Args:
        path: a bundle's directory, an ONNX file, or a TensorRT engine.
        options: where it listens, and its bounds.

    Raises:
        BundleError: the artifact is missing or damaged.
    """

    def __init__(self, path: Path, options: ServeOptions) -> None:
        self._options = options
        self._segmenter = Segmenter(path, options.provider)
        self._name = options.name or name_from(path.resolve().stem)
        self._interface = Interface(self._segmenter.batch, self._segmenter.height, self._segmenter.width)
        self.metrics = Metrics()
        self.admission = Admission()
        self.metrics.watch("in_flight", "Requests that were let in.", lambda: self.admission.inside)
        self._queue = RunQueue(self._segmenter, options.queue_size, self.metrics)
        self._readers = ThreadPoolExecutor(1, thread_name_prefix="readers")
        plane = ServerPlane(ServedModel(self._name, self._interface, self._queue, self.admission), self.admission)
        self._servicer = rpc.Servicer(plane, self._interface, self.admission, self.metrics)
        self._http = self._http_server(plane)
        self._rpc: aio.Server | None = None
        self._serving: asyncio.Task[None] | None = None

    async def start(self) -> Listening:
        """Listen, load the model, run it once, and let requests in.

        Raises:
            UsageError: an address cannot be listened on.
            BundleError: the runtime refuses the model.
            ProviderError: the provider asked for would not run.
        """
        silence_libraries()
        opened, http_port, grpc_port = self._listen()
        self._rpc = rpc.grpc_server(self._servicer, rpc.max_message_bytes(self._interface))
        self._rpc.add_insecure_port(joined(self._options.host, grpc_port))
        await self._rpc.start()
        self._serving = asyncio.create_task(self._http.serve([opened]))
        while not (self._http.started or self._serving.done()):
            await asyncio.sleep(_POLL_S)
        await self._queue.open()
        self.metrics.describe(self._name, self._segmenter.info, self._segmenter.runner_name)
        self.admission.state = State.READY
        return self._listening(http_port, grpc_port)

    async def stop(self, drain_s: float, at_once: asyncio.Event) -> int:
        """Refuse new requests, wait for those that were accepted, and stop; returns how many were cut off."""
        waits = [asyncio.ensure_future(self.admission.drained()), asyncio.ensure_future(at_once.wait())]
        await asyncio.wait(waits, timeout=drain_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        cut_off = self.admission.inside
        if self._rpc is not None:
            await self._rpc.stop(_LAST_WORDS_S if not cut_off else 0)
        if self._serving is not None:
            self._http.config.timeout_graceful_shutdown = _LAST_WORDS_S
            self._http.should_exit = True
            await self._serving
        await self._queue.close()
        self._readers.shutdown(cancel_futures=True)
        return cut_off

    def _http_server(self, plane: ServerPlane) -> _Http:
        options, max_photo = self._options, self._options.max_photo_mb * _BYTES_PER_MB
        app = application(plane, self.metrics)
        Page(self._name, self._segmenter, self._queue, self._readers, options.keep_aspect, max_photo).add_to(app)
        bounds = max_photo, _BYTES_PER_NUMBER * self._interface.tensor_bytes + _HEAD_BYTES
        bodies = Bodies(options.client_timeout_s)
        self.metrics.watch("body_bytes", "Bytes of request bodies in memory.", lambda: bodies.held_bytes)
        inference = Inference(plane, self._interface, self._readers, app)
        gate = Gate(inference, self.admission, bodies, self.metrics, bounds)
        connection = type("Connection", (BoundedConnection,), {"timeout_s": options.client_timeout_s})
        config = uvicorn.Config(
            gate, http=connection, ws="none", lifespan="off", log_config=None, access_log=False, server_header=False,
            proxy_headers=False,
            limit_concurrency=_MAX_CONNECTIONS,
        )  # fmt: skip
        return _Http(config)

    def _listen(self) -> tuple[socket.socket, int, int]:
        """HTTP's socket, its port, and gRPC's port."""
        options = self._options
        opened = listen(options.host, options.http_port, "--http-port")
        try:
            # gRPC says of a taken port no more than that it failed, and logs to the terminal.
            with listen(options.host, options.grpc_port, "--grpc-port") as tried:
                return opened, opened.getsockname()[1], tried.getsockname()[1]
        except BaseException:
            opened.close()
            raise

    def _listening(self, http_port: int, grpc_port: int) -> Listening:
        info = self._segmenter.info
        return Listening(
            self._name, f"{info.network}, {info.provenance}", self._segmenter.runner_name, info.provenance.untrained,
            self._interface, self._options.host, http_port, grpc_port,
        )  # fmt: skip


def silence_libraries() -> None:
    """Keep what libraries log off the terminal, unless whoever uses this package has set logging up."""
    for name in ("fcn_deploy.serving", "kserve", "uvicorn", "asyncio", "grpc"):
        logging.getLogger(name).addHandler(logging.NullHandler())
