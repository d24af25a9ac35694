"""The queue in front of the model: requests wait here, and one thread runs them in batches."""

import asyncio
import contextlib
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any, TypeVar

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

    One thread opens, runs and closes the model, which CUDA requires; all else happens on the event loop.

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
        self._changed = asyncio.Event()
        self._closing = False
        self._runtime = ThreadPoolExecutor(1, thread_name_prefix="runtime")
        self._opened = contextlib.ExitStack()
        self._dispatcher: asyncio.Task[None] | None = None
        metrics.watch("waiting", "Requests that wait for the runtime.", lambda: len(self._waiting))

    async def open(self) -> None:
        """Load the model, run it once, and begin to run requests.

        Raises:
            BundleError: the runtime cannot load the model.
            ProviderError: the provider asked for would not run.
        """

        def load() -> None:
            self._opened.enter_context(self._segmenter)
            self._label([mean_image(self._segmenter.height, self._segmenter.width)[None]])

        await run_in_thread(self._runtime, load)
        self._dispatcher = asyncio.create_task(self._dispatch())

    async def submit(self, pixels: Pixels) -> InferResult:
        """Return the labels of n x H x W x 3 pixels, n at most the model's batch; a cancelled request is not run.

        Raises:
            RequestError: the queue is full.
        """
        if len(self._waiting) >= self._size:
            raise unavailable(f"{len(self._waiting)} requests wait for the model, and at most {self._size} may")
        request = _QueuedRequest(pixels, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        self._changed.set()
        try:
            return await request.result
        finally:
            if request in self._waiting:
                self._waiting.remove(request)

    async def close(self) -> None:
        """Wait for the current run, cancel waiting requests, and close the model."""
        self._closing = True
        self._changed.set()
        if self._dispatcher is not None:
            await self._dispatcher
        for request in self._waiting:
            request.result.cancel()
        await run_in_thread(self._runtime, self._opened.close)
        self._runtime.shutdown()

    async def _dispatch(self) -> None:
        while not self._closing:
            if self._waiting:
                await self._run(self._next_batch())
            else:
                self._changed.clear()
                await self._changed.wait()

    def _next_batch(self) -> list[_QueuedRequest]:
        """Return the oldest requests that fit one run together."""
        batch: list[_QueuedRequest] = []
        room = self._segmenter.batch
        while self._waiting and len(self._waiting[0].pixels) <= room:
            batch.append(self._waiting.popleft())
            room -= len(batch[-1].pixels)
        return batch

    async def _run(self, batch: list[_QueuedRequest]) -> None:
        start = time.perf_counter()
        try:
            labels, run_s = await run_in_thread(self._runtime, lambda: self._label([one.pixels for one in batch]))
        except Exception as error:  # a failed run ends its own requests only
            for request in batch:
                if not request.result.done():
                    request.result.set_exception(error)
            return
        first = 0
        for request in batch:
            last = first + len(request.pixels)
            if not request.result.done():  # or its client has left
                request.result.set_result(InferResult(labels[first:last], start - request.arrived, run_s))
            first = last
        self._metrics.count_run(first, run_s)

    def _label(self, requests: list[Pixels]) -> tuple[Labels, float]:
        """Return the labels of all requests, and the seconds that the runtime alone took."""
        feed = self._segmenter.feed([photo for pixels in requests for photo in pixels])
        start = time.perf_counter()
        outputs = self._segmenter.run(feed)
        run_s = time.perf_counter() - start
        return self._segmenter.labels(outputs), run_s


async def run_in_thread(executor: Executor, function: Callable[[], T]) -> T:
    """Return what `function` returns in another thread; it is not called if the caller has been cancelled by then.

    `loop.run_in_executor` is not used: its future keeps its callbacks, and with them itself and its result, until the
    garbage collector runs; at a megabyte a request that is hundreds of megabytes.
    """
    loop = asyncio.get_running_loop()
    future: asyncio.Future[T] = loop.create_future()

    def finish(finisher: Callable[[Any], None], value: Any) -> None:
        if not future.done():
            finisher(value)

    def run() -> None:
        if future.cancelled():
            return
        try:
            value = function()
        except Exception as error:
            loop.call_soon_threadsafe(finish, future.set_exception, error)
        else:
            loop.call_soon_threadsafe(finish, future.set_result, value)

    executor.submit(run)
    return await future
