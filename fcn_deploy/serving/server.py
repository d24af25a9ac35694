"""Servers as they are used: until a signal comes, or for the length of a block."""

import asyncio
import contextlib
import signal
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from fcn_deploy.serving.options import ServeOptions, require_serving

if TYPE_CHECKING:
    from fcn_deploy.serving.listening import Listening

_T = TypeVar("_T")
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
OnListening = Callable[["Listening"], None]


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


def serve(path: Path, options: ServeOptions | None = None, on_listening: OnListening | None = None) -> Served:
    """Serve an artifact until SIGINT or SIGTERM; what was accepted is answered first, unless a second signal comes.

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
        ending = _Ending()
        with _signals(ending):
            return await _lived(path, options or ServeOptions(), ending, on_listening or (lambda _: None))

    return _run(main())


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

    listening: "Listening"

    def __init__(self, path: Path, options: ServeOptions | None = None) -> None:
        require_serving()
        self._path = path
        self._options = options or ServeOptions()
        self._listening: Future[Listening] = Future()
        self._ending: _Ending | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._stopping = threading.Lock()
        self._thread = threading.Thread(target=self._live, name="server")

    def __enter__(self) -> Self:
        self._thread.start()
        self.listening = self._listening.result()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()

    def stop(self) -> None:
        """Refuse new requests, answer the accepted ones, and wait for that; the second time, only wait."""
        with self._stopping:
            loop, self._loop = self._loop, None
        if loop is not None and self._ending is not None:
            loop.call_soon_threadsafe(self._ending.end, None)
        self._thread.join()

    def _live(self) -> None:
        async def main() -> None:
            self._loop, self._ending = asyncio.get_running_loop(), _Ending()
            await _lived(self._path, self._options, self._ending, self._listening.set_result)

        try:
            _run(main())
        except BaseException as error:  # the thread that waits for the address raises it
            if self._listening.done():
                raise
            self._listening.set_exception(error)
        finally:
            self._loop = None


class _Ending:
    """When a server has to end: orderly the first time it is told, at once the second time."""

    def __init__(self) -> None:
        self.orderly, self.at_once = asyncio.Event(), asyncio.Event()
        self.signal: int | None = None

    def end(self, number: int | None) -> None:
        if self.orderly.is_set():
            self.at_once.set()
        else:
            self.signal = number
            self.orderly.set()


async def _lived(path: Path, options: ServeOptions, ending: _Ending, on_listening: OnListening) -> Served:
    """Start, wait for the end, which may come before the start is done, and stop."""
    from fcn_deploy.serving.service import Service

    service = Service(path, options)
    starting, waiting = asyncio.ensure_future(service.start()), asyncio.ensure_future(ending.orderly.wait())
    try:
        await asyncio.wait((starting, waiting), return_when=asyncio.FIRST_COMPLETED)
        if starting.done():
            on_listening(starting.result())
            await waiting
    finally:
        starting.cancel()
        waiting.cancel()
        cut_off = await service.stop(options.drain_s, ending.at_once)
    return Served(service.metrics.answered(), cut_off, ending.signal)


@contextlib.contextmanager
def _signals(ending: _Ending) -> Iterator[None]:
    """Let signals end the server instead of what they did before."""
    loop = asyncio.get_running_loop()

    def end(number: int, _: FrameType | None) -> None:
        loop.call_soon_threadsafe(ending.end, number)

    before = {number: signal.signal(number, end) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _run(main: Coroutine[Any, Any, _T]) -> _T:
    """Run on the event loop that Uvicorn prefers: uvloop where there is one."""
    from uvicorn.loops.auto import auto_loop_factory

    with asyncio.Runner(loop_factory=auto_loop_factory()) as runner:
        return runner.run(main)
