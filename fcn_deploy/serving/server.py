"""A server for one artifact, which runs until a signal (`serve`) or until a block ends (`Server`)."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Coroutine
from concurrent.futures import Future
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from fcn_deploy.errors import UsageError
from fcn_deploy.installation import require_extra
from fcn_deploy.serving.options import ServeOptions

_STOP_GRACE_S = 1
_REQUIRED = ("h11", "grpc", "tritonclient", "prometheus_client")


@dataclass(frozen=True)
class Endpoint:
    """A server that is ready: what it serves, and where it listens."""

    name: str
    description: str  # the network and its weights
    runtime: str  # what runs it
    untrained: bool  # whether its labels mean nothing
    inputs: list[dict[str, Any]]  # as the protocol describes them
    outputs: list[dict[str, Any]]  # as the protocol describes them
    max_batch: int  # photos per request
    http_url: str  # of the page, and the base of all others
    grpc_url: str  # for a gRPC client

    def to_dict(self) -> dict[str, Any]:
        """Return every fact, for JSON."""
        return {name.removesuffix("_url"): fact for name, fact in asdict(self).items()}


@dataclass(frozen=True)
class Served:
    """The counts of a server that has stopped.

    Attributes:
        answered: requests answered with labels.
        cut_off: accepted requests that were not answered when it stopped.
        signal: number of the first signal that stopped it, or None.
    """

    answered: int
    cut_off: int
    signal: int | None = None


OnListening = Callable[[Endpoint], None]


def serve(path: Path, options: ServeOptions | None = None, on_listening: OnListening | None = None) -> Served:
    """Serve an artifact until SIGINT or SIGTERM; accepted requests are answered first, unless a second signal comes.

    Args:
        path: a bundle's directory, an ONNX file, or a TensorRT engine.
        options: where to listen, and bounds.
        on_listening: called when the server is ready.

    Raises:
        BundleError: the artifact is missing or damaged.
        ProviderError: the provider asked for would not run.
        UsageError: a package is missing, or an address cannot be listened on.
    """
    require_extra("serving", "serve", _REQUIRED)

    async def main() -> Served:
        shutdown, loop = _Shutdown(), asyncio.get_running_loop()

        def handle(number: int, _: FrameType | None) -> None:
            loop.call_soon_threadsafe(shutdown.handle_signal, number)

        with contextlib.ExitStack() as restored:
            for number in (signal.SIGINT, signal.SIGTERM):
                restored.callback(signal.signal, number, signal.signal(number, handle))
            return await _run(path, options or ServeOptions(), shutdown, on_listening or (lambda _: None))

    return _run_on_loop(main())


class Server:
    """A server in its own thread that runs during a `with` block; at its end accepted requests are answered.

    Takes the arguments of `serve` and raises what it does: at once when a package is missing, else on entering.

    Attributes:
        listening: what it serves and where, known inside the block.
    """

    listening: Endpoint

    def __init__(self, path: Path, options: ServeOptions | None = None) -> None:
        require_extra("serving", "serve", _REQUIRED)
        self._started: Future[Endpoint] = Future()
        self._shutdown = _Shutdown()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._thread = threading.Thread(target=self._serve, args=(path, options or ServeOptions()), name="server")

    def __enter__(self) -> Self:
        self._thread.start()
        self.listening = self._started.result()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse new requests, answer the accepted ones, and wait for that; a second call only waits."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed already
                self._loop.call_soon_threadsafe(self._shutdown.requested.set)
        self._thread.join()

    def _serve(self, path: Path, options: ServeOptions) -> None:
        async def main() -> Served:
            self._loop = asyncio.get_running_loop()
            return await _run(path, options, self._shutdown, self._started.set_result)

        try:
            _run_on_loop(main())
        except BaseException as error:  # `__enter__` raises it
            if self._started.done():
                raise
            self._started.set_exception(error)
        finally:
            self._started.cancel()  # `__enter__` waits for it, also when it was stopped while starting


class _Shutdown:
    """Whether a server has to stop: after draining once it is requested, at once since the second signal."""

    def __init__(self) -> None:
        self.requested, self.at_once = asyncio.Event(), asyncio.Event()
        self.signal: int | None = None

    def handle_signal(self, number: int) -> None:
        if self.requested.is_set():
            self.at_once.set()
        else:
            self.signal = number
            self.requested.set()


def _run_on_loop(main: Coroutine[Any, Any, Served]) -> Served:
    """Run on uvloop if it is installed: it answers large requests 10 % sooner."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    return uvloop.run(main)


async def _run(path: Path, options: ServeOptions, shutdown: _Shutdown, on_listening: OnListening) -> Served:
    """Start, wait for a shutdown, which may be requested while starting, and stop."""
    core = _ServerCore(path, options)
    starting, waiting = asyncio.ensure_future(core.start()), asyncio.ensure_future(shutdown.requested.wait())
    try:
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            on_listening(starting.result())
            await waiting
    finally:
        starting.cancel()
        waiting.cancel()
        cut_off = await core.stop(shutdown.at_once)
    return Served(core.metrics.answered_requests(), cut_off, shutdown.signal)


class _ServerCore:
    """The parts of a server, on one event loop: the model, HTTP and gRPC."""

    def __init__(self, path: Path, options: ServeOptions) -> None:
        from fcn_deploy.serving import grpc, http, metrics, model, routes

        for name in ("fcn_deploy.serving", "asyncio", "grpc"):  # logged only if the calling program configures logging
            logging.getLogger(name).addHandler(logging.NullHandler())
        self._options = options
        self.metrics = metrics.ServerMetrics()
        self._service = model.ModelService(path, options, self.metrics)
        self._routes = routes.Routes(self._service, options)
        self._http = http.HttpServer(self._routes.handle, options.client_timeout_s)
        self._grpc = grpc.create_grpc_server(self._service)
        self.metrics.watch("body_bytes", "Bytes of request bodies in memory.", lambda: self._http.held_bytes)

    async def start(self) -> Endpoint:
        """Listen, load the model, run it once, and accept requests; raises as `serve`."""
        host = self._options.host
        # For a port in use gRPC reports only a failure, and logs to the terminal.
        with listen(host, self._options.grpc_port, "--grpc-port") as tried:
            listener = listen(host, self._options.http_port, "--http-port")
            http_address, grpc_address = (_address(host, opened.getsockname()[1]) for opened in (listener, tried))
        await self._http.start(listener)
        self._grpc.add_insecure_port(grpc_address)
        await self._grpc.start()
        await self._service.load()
        info, interface = self._service.segmenter.info, self._service.interface
        return Endpoint(
            self._service.name, f"{info.network}, {info.provenance}", self._service.segmenter.runner_name,
            info.provenance.untrained, **interface.describe(), max_batch=interface.batch,
            http_url=f"http://{http_address}", grpc_url=grpc_address,
        )  # fmt: skip

    async def stop(self, at_once: asyncio.Event) -> int:
        """Refuse new requests, wait for the accepted ones, and stop; returns how many of those were cut off."""
        waits = [asyncio.ensure_future(self._service.drain()), asyncio.ensure_future(at_once.wait())]
        await asyncio.wait(waits, timeout=self._options.drain_s, return_when=asyncio.FIRST_COMPLETED)
        for wait in waits:
            wait.cancel()
        cut_off = self._service.in_flight
        grace_s = 0 if cut_off else _STOP_GRACE_S
        await self._grpc.stop(grace_s)
        await self._http.stop(grace_s)
        await self._service.queue.close()
        self._routes.close()
        return cut_off


def listen(host: str, port: int, option: str) -> socket.socket:
    """Return a socket that accepts connections.

    Raises:
        UsageError: the address does not belong to this machine, the port is in use, or it is not allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with contextlib.ExitStack() as on_error:
            opened = on_error.enter_context(socket.socket(family, socket.SOCK_STREAM))
            opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            opened.bind(address)
            opened.listen()
            on_error.pop_all()
        return opened
    except OSError as error:
        remedy = "Pass --host with an address of this machine."
        if error.errno in (errno.EADDRINUSE, errno.EACCES):
            remedy = f"Pass another {option}, or 0 for any that is free."
        raise UsageError(f"cannot listen on {_address(host, port)}: {error.strerror}", remedy=remedy) from error


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
