"""A server for one artifact: until a signal comes (`serve`), or for the length of a block (`Server`)."""

import asyncio
import contextlib
import errno
import logging
import signal
import socket
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import Any, Self, TypeVar

from fcn_deploy.errors import UsageError
from fcn_deploy.serving.options import ServeOptions, require_serving

T = TypeVar("T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_STOP_GRACE_S = 1
_BACKLOG = 512


@dataclass(frozen=True)
class Endpoint:
    """A server that is ready: what it serves, and where it listens.

    `description` names the network and its weights, `runtime` what runs them; the labels of an `untrained` model mean
    nothing. `inputs` and `outputs` are as the protocol describes them, for up to `max_batch` photos a request.
    """

    name: str
    description: str
    runtime: str
    untrained: bool
    inputs: list[dict[str, Any]]
    outputs: list[dict[str, Any]]
    max_batch: int
    host: str
    http_port: int
    grpc_port: int

    @property
    def http_url(self) -> str:
        """The URL of the page, and the base of all others."""
        return f"http://{_address(self.host, self.http_port)}"

    @property
    def grpc_url(self) -> str:
        """The address for a gRPC client."""
        return _address(self.host, self.grpc_port)

    def to_dict(self) -> dict[str, Any]:
        """Return every fact, for JSON."""
        facts = asdict(self)
        del facts["host"], facts["http_port"], facts["grpc_port"]
        return facts | {"http": self.http_url, "grpc": self.grpc_url}


@dataclass(frozen=True)
class Served:
    """What a server did.

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
    require_serving()

    async def main() -> Served:
        shutdown = _Shutdown()
        with _signals_to(shutdown):
            return await _run(path, options or ServeOptions(), shutdown, on_listening or (lambda _: None))

    return _run_on_loop(main())


class Server:
    """A server in a thread of its own, for the length of a `with` block; accepted requests are answered at its end.

    Args:
        path: a bundle's directory, an ONNX file, or a TensorRT engine.
        options: where to listen, and bounds.

    Attributes:
        listening: its addresses, known inside the block.

    Raises:
        UsageError: at once, when a package is missing; on entering, when an address cannot be listened on.
        BundleError: on entering, when the artifact is missing or damaged.
        ProviderError: on entering, when the provider asked for would not run.
    """

    listening: Endpoint

    def __init__(self, path: Path, options: ServeOptions | None = None) -> None:
        require_serving()
        self._path = path
        self._options = options or ServeOptions()
        self._started: Future[Endpoint] = Future()
        self._shutdown: _Shutdown | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Lock()
        self._thread = threading.Thread(target=self._serve, name="server")

    def __enter__(self) -> Self:
        self._thread.start()
        self.listening = self._started.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse new requests, answer the accepted ones, and wait for that; the second time, only wait."""
        with self._stopping:
            loop, self._loop = self._loop, None
        if loop is not None and self._shutdown is not None:
            loop.call_soon_threadsafe(self._shutdown.request, None)
        self._thread.join()

    def _serve(self) -> None:
        async def main() -> None:
            self._loop, self._shutdown = asyncio.get_running_loop(), _Shutdown()
            await _run(self._path, self._options, self._shutdown, self._started.set_result)

        try:
            _run_on_loop(main())
        except BaseException as error:  # `__enter__` raises it
            if self._started.done():
                raise
            self._started.set_exception(error)
        finally:
            self._loop = None


class _Shutdown:
    """Whether a server has to stop: after draining since the first request to, at once since the second."""

    def __init__(self) -> None:
        self.requested, self.at_once = asyncio.Event(), asyncio.Event()
        self.signal: int | None = None

    def request(self, number: int | None) -> None:
        if self.requested.is_set():
            self.at_once.set()
        else:
            self.signal = number
            self.requested.set()


@contextlib.contextmanager
def _signals_to(shutdown: _Shutdown) -> Iterator[None]:
    """Let signals request a shutdown for the length of the block."""
    loop = asyncio.get_running_loop()

    def handle(number: int, _: FrameType | None) -> None:
        loop.call_soon_threadsafe(shutdown.request, number)

    before = {number: signal.signal(number, handle) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run_on_loop(main: Coroutine[Any, Any, T]) -> T:
    """Run on uvloop where it is installed, which answers large requests 10 % sooner."""
    try:
        import uvloop
    except ImportError:
        return asyncio.run(main)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(main)


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
        from fcn_deploy.serving.grpc import create_grpc_server
        from fcn_deploy.serving.http import HttpServer
        from fcn_deploy.serving.metrics import ServerMetrics
        from fcn_deploy.serving.model import ModelService
        from fcn_deploy.serving.routes import Routes

        for name in ("fcn_deploy.serving", "asyncio", "grpc"):  # logged only if the calling program has set that up
            logging.getLogger(name).addHandler(logging.NullHandler())
        self._options = options
        self.metrics = ServerMetrics()
        self._service = ModelService(path, options, self.metrics)
        self._executor = ThreadPoolExecutor(1, thread_name_prefix="decoder")
        routes = Routes(self._service, self.metrics, options, self._executor)
        self._http = HttpServer(routes.handle, options.client_timeout_s)
        self._grpc = create_grpc_server(self._service, self.metrics)
        self.metrics.watch("body_bytes", "Bytes of request bodies in memory.", lambda: self._http.held_bytes)

    async def start(self) -> Endpoint:
        """Listen, load the model, run it once, and accept requests.

        Raises:
            UsageError: an address cannot be listened on.
            BundleError: the runtime cannot load the model.
            ProviderError: the provider asked for would not run.
        """
        host = self._options.host
        with contextlib.ExitStack() as on_error:
            listener = on_error.enter_context(listen(host, self._options.http_port, "--http-port"))
            # gRPC says of a port in use no more than that it failed, and logs to the terminal.
            with listen(host, self._options.grpc_port, "--grpc-port") as tried:
                http_port, grpc_port = listener.getsockname()[1], tried.getsockname()[1]
            self._grpc.add_insecure_port(_address(host, grpc_port))
            await self._grpc.start()
            await self._http.start(listener)
            on_error.pop_all()
        await self._service.load()
        info, interface = self._service.segmenter.info, self._service.interface
        return Endpoint(
            self._service.name, f"{info.network}, {info.provenance}", self._service.segmenter.runner_name,
            info.provenance.untrained, **interface.describe(), max_batch=interface.batch,
            host=host, http_port=http_port, grpc_port=grpc_port,
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
        self._executor.shutdown(cancel_futures=True)
        return cut_off


def listen(host: str, port: int, option: str) -> socket.socket:
    """Return a socket that accepts connections.

    Raises:
        UsageError: the address does not belong to this machine, the port is in use, or it is not allowed.
    """
    try:
        family, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        opened = socket.socket(family, socket.SOCK_STREAM)
    except OSError as error:
        raise _cannot_listen(host, port, error, "Pass --host with an address of this machine.") from error
    try:
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        opened.bind(address)
        opened.listen(_BACKLOG)
    except OSError as error:
        opened.close()
        in_use = error.errno in (errno.EADDRINUSE, errno.EACCES)
        remedy = f"Pass another {option}, or 0 for any that is free." if in_use else "Pass another --host."
        raise _cannot_listen(host, port, error, remedy) from error
    return opened


def _cannot_listen(host: str, port: int, error: OSError, remedy: str) -> UsageError:
    return UsageError(f"cannot listen on {_address(host, port)}: {error.strerror}", remedy=remedy)


def _address(host: str, port: int) -> str:
    return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"
