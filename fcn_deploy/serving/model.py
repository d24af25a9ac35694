"""The model that HTTP and gRPC share: whether requests are accepted, and the queue in which they wait for it."""

import asyncio
import contextlib
import re
import time
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, ThreadPoolExecutor
from dataclasses import dataclass, field
from http import HTTPStatus
from pathlib import Path
from typing import Any, TypeVar

from fcn_deploy.images import Labels, Pixels
from fcn_deploy.segmentation import Segmenter
from fcn_deploy.serving.metrics import ServerMetrics
from fcn_deploy.serving.options import ServeOptions
from fcn_deploy.serving.protocol import InferResult, ModelInterface, RequestError, unavailable

T = TypeVar("T")
# Runs of these become one underscore in the name of a model that is named after its file.
_NOT_IN_MODEL_NAMES = re.compile(r"[^A-Za-z0-9_.-]+")


class ModelService:
    """A served artifact with its queue. Requests are accepted while it is ready; accepted requests are counted.

    Raises:
        BundleError: the artifact is missing or damaged.
    """

    def __init__(self, path: Path, options: ServeOptions, metrics: ServerMetrics) -> None:
        self.segmenter = Segmenter(
            path, options.provider, use_cache=options.use_cache
        )  # for the model's facts; only the queue runs it
        file_name = _NOT_IN_MODEL_NAMES.sub("_", path.resolve().stem).lstrip("_.-")
        self.name = options.name or file_name[:100] or "model"
        self.interface = ModelInterface(self.segmenter.batch, self.segmenter.height, self.segmenter.width)
        self.queue = BatchQueue(self.segmenter, options.queue_size, metrics)
        self.unready: str | None = "loading its model"  # what the server does while it accepts no requests
        self.in_flight = 0  # requests that were accepted and are not answered yet
        self.metrics = metrics
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.watch("in_flight", "Accepted requests.", lambda: self.in_flight)

    async def load(self) -> None:
        """Load the model, run it once, and begin to accept requests; raises as `server.serve`."""
        await self.queue.open()
        self.metrics.describe_model(self.name, self.segmenter.info, self.segmenter.runner_name)
        self.unready = None

    async def drain(self) -> None:
        """Accept no more requests, and wait until the accepted ones are answered."""
        self.unready = "shutting down"
        await self._idle.wait()

    @contextlib.contextmanager
    def accepted(self, protocol: str) -> Iterator[None]:
        """Count a request, and have it accepted for the length of the block; raises as `check_ready`."""
        with self.metrics.count_request(protocol):
            self.check_ready()
            self.in_flight += 1
            self._idle.clear()
            try:
                yield
            finally:
                self.in_flight -= 1
                if not self.in_flight:
                    self._idle.set()

    def check_ready(self) -> None:
        """Raise a `RequestError` while the model is not loaded yet, or the server is shutting down."""
        if self.unready:
            raise unavailable(f"the server is {self.unready}")

    def check_name(self, name: str) -> None:
        """Raise a `RequestError` when a request is for another model."""
        if name != self.name:
            raise RequestError(HTTPStatus.NOT_FOUND, f"no model {name!r} is served here", "GET /v2/models lists it.")

    def metadata(self) -> dict[str, Any]:
        """Return name, inputs and outputs of the model, as the protocol describes them."""
        return {"name": self.name, "platform": ""} | self.interface.describe()


@dataclass(eq=False)
class _QueuedRequest:
    pixels: Pixels
    result: "asyncio.Future[InferResult]"
    arrived: float = field(default_factory=time.perf_counter)


class BatchQueue:
    """Runs requests in the order of their arrival, several at once where the model has a batch; up to `size` may wait.

    One thread opens, runs and closes the model, which CUDA requires; all else happens on the event loop.
    """

    def __init__(self, segmenter: Segmenter, size: int, metrics: ServerMetrics) -> None:
        self._segmenter = segmenter
        self._size = size
        self._metrics = metrics
        self._waiting: deque[_QueuedRequest] = deque()
        self._closing = False
        self._runtime = ThreadPoolExecutor(1, thread_name_prefix="runtime")
        self._opened = contextlib.ExitStack()
        self._dispatcher: asyncio.Task[None] | None = None
        metrics.watch("waiting", "Requests that wait for the runtime.", lambda: len(self._waiting))

    async def open(self) -> None:
        """Load the model and run it once; raises as `server.serve`."""

        def load() -> None:
            self._opened.enter_context(self._segmenter)
            self._label([self._segmenter.empty_canvas()[None]])

        await run_in_thread(self._runtime, load)

    async def submit(self, pixels: Pixels) -> InferResult:
        """Return the labels of n x H x W x 3 pixels, n at most the model's batch; a cancelled request is not run.

        Raises:
            RequestError: the queue is full.
        """
        if len(self._waiting) >= self._size:
            raise unavailable(f"{len(self._waiting)} requests wait for the model, and at most {self._size} may")
        request = _QueuedRequest(pixels, asyncio.get_running_loop().create_future())
        self._waiting.append(request)
        if self._dispatcher is None or self._dispatcher.done():
            self._dispatcher = asyncio.create_task(self._dispatch())
        try:
            return await request.result
        finally:
            if request in self._waiting:
                self._waiting.remove(request)

    async def close(self) -> None:
        """Wait for the current run, cancel waiting requests, and close the model."""
        self._closing = True
        if self._dispatcher is not None:
            await self._dispatcher
        for request in self._waiting:
            request.result.cancel()
        await run_in_thread(self._runtime, self._opened.close)
        self._runtime.shutdown()

    async def _dispatch(self) -> None:
        while self._waiting and not self._closing:
            await self._run(self._next_batch())

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
        self._metrics.photos.inc(first)
        self._metrics.run.observe(run_s)

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
    loop, done = asyncio.get_running_loop(), asyncio.Event()
    job = executor.submit(function)
    job.add_done_callback(lambda _: loop.call_soon_threadsafe(done.set))
    try:
        await done.wait()
    finally:
        job.cancel()  # without effect when it has begun
    return job.result()
