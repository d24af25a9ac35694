"""The queue in front of the model: requests wait here, and one thread runs them in batches."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any, TypeVar

import numpy as np

from fcn_deploy.images import Labels, Pixels, mean_image
from fcn_deploy.segmentation import Segmenter
from fcn_deploy.serving.metrics import ServerMetrics
from fcn_deploy.serving.protocol import InferResult, unavailable

T = TypeVar("T")


@dataclass(eq=False)
class _QueuedRequest:
    pixels: Pixels
    result: "asyncio.Future[InferResult]"
    arrived: float = field(default_factory=time.perf_counter)


class BatchQueue:
    """Runs requests in the order of their arrival, several at once where the model has a batch.

    The thread that opens the model also runs and closes it, which CUDA requires. Create and use it on an event loop.

    Args:
        segmenter: the model, not open yet.
        size: requests that may wait.
        metrics: where runs are counted.
    """

    def __init__(self, segmenter: Segmenter, size: int, metrics: ServerMetrics) -> None:
        self._segmenter = segmenter
        self._size = size
        self._metrics = metrics
        self._waiting: deque[_QueuedRequest] = deque()
        self._changed = threading.Condition()
        self._is_open = False
        self._loop = asyncio.get_running_loop()
        self._loaded: asyncio.Future[None] = self._loop.create_future()
        self._closed = asyncio.Event()
        self._thread = threading.Thread(target=self._run_all, name="runtime")
        metrics.watch("waiting", "Requests that wait for the runtime.", lambda: len(self._waiting))

    async def open(self) -> None:
        """Load the model, run it once, and begin to run requests.

        Raises:
            BundleError: the runtime cannot load the model.
            ProviderError: the provider asked for would not run.
        """
        self._is_open = True
        self._thread.start()
        await self._loaded

    async def submit(self, pixels: Pixels) -> InferResult:
        """Return the labels of n x H x W x 3 pixels, n at most the model's batch; a cancelled request is not run.

        Raises:
            RequestError: the queue is full.
        """
        if len(self._waiting) >= self._size:
            raise unavailable(f"{len(self._waiting)} requests wait for the model, and at most {self._size} may")
        request = _QueuedRequest(pixels, self._loop.create_future())
        with self._changed:
            self._waiting.append(request)
            self._changed.notify()
        try:
            return await request.result
        except asyncio.CancelledError:
            with self._changed:
                if request in self._waiting:
                    self._waiting.remove(request)
            raise

    async def close(self) -> None:
        """Wait for the current run, cancel waiting requests, and close the model."""
        with self._changed:
            self._is_open = False
            self._changed.notify()
        if self._thread.ident is not None:
            await self._closed.wait()
        for request in self._waiting:
            request.result.cancel()

    def _run_all(self) -> None:
        """Load the model and run batches until the queue is closed; this is all that happens in the thread."""
        try:
            with self._segmenter:
                self._label(mean_image(self._segmenter.height, self._segmenter.width)[None])
                self._on_loop(_resolve, self._loaded, None)
                while batch := self._next_batch():
                    self._run(batch)
                    del batch  # or the last one is kept while none waits
        except BaseException as error:  # `open` raises it
            self._on_loop(_reject, [self._loaded], error)
        finally:
            self._on_loop(self._closed.set)

    def _next_batch(self) -> list[_QueuedRequest]:
        """Wait for requests and return the oldest that fit one run; nothing when the queue is closed."""
        batch: list[_QueuedRequest] = []
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._is_open)
            room = self._segmenter.batch if self._is_open else 0
            while self._waiting and len(self._waiting[0].pixels) <= room:
                batch.append(self._waiting.popleft())
                room -= len(batch[-1].pixels)
        return batch

    def _run(self, batch: list[_QueuedRequest]) -> None:
        start = time.perf_counter()
        try:
            pixels = batch[0].pixels if len(batch) == 1 else np.concatenate([request.pixels for request in batch])
            labels, seconds = self._label(pixels)
        except Exception as error:  # a failed run ends its own requests only
            self._on_loop(_reject, [request.result for request in batch], error)
        else:
            self._on_loop(_deliver, batch, labels, start, seconds)
            self._metrics.count_run(len(pixels), seconds)

    def _label(self, pixels: Pixels) -> tuple[Labels, float]:
        """Return labels, and the seconds that the runtime alone took."""
        feed = self._segmenter.feed(list(pixels))
        start = time.perf_counter()
        outputs = self._segmenter.run(feed)
        seconds = time.perf_counter() - start
        return self._segmenter.labels(outputs), seconds

    def _on_loop(self, function: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(function, *arguments)


async def run_in_thread(executor: Executor, function: Callable[[], T]) -> T:
    """Return what `function` returns in another thread; it is not called if the caller has been cancelled by then.

    `loop.run_in_executor` is not used: its future keeps its callbacks, and with them itself and its result, until the
    garbage collector runs; at a megabyte a request that is hundreds of megabytes.
    """
    loop = asyncio.get_running_loop()
    result: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        if result.cancelled():
            return
        try:
            value = function()
        except Exception as error:
            loop.call_soon_threadsafe(_reject, [result], error)
        else:
            loop.call_soon_threadsafe(_resolve, result, value)

    executor.submit(run)
    return await result


def _deliver(batch: list[_QueuedRequest], labels: Labels, start: float, seconds: float) -> None:
    first = 0
    for request in batch:
        last = first + len(request.pixels)
        _resolve(request.result, InferResult(labels[first:last], start - request.arrived, seconds))
        first = last


def _resolve(future: "asyncio.Future[Any]", value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _reject(futures: "Iterable[asyncio.Future[Any]]", error: BaseException) -> None:
    for future in futures:
        if not future.done():
            future.set_exception(error)
