"""Between the event loop and the runtime: one thread that runs the model, and a bounded queue in front of it."""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from fcn_deploy.images import Labels, Pixels, mean_image
from fcn_deploy.segmentation import Segmenter
from fcn_deploy.serving.metrics import Metrics
from fcn_deploy.serving.refusals import busy

_T = TypeVar("_T")


@dataclass(frozen=True)
class Answer:
    """Labels of one request.

    Attributes:
        labels: n x H x W uint8.
        waited_s: seconds from its arrival to the beginning of its run.
        ran_s: seconds of its run: of the model alone.
    """

    labels: Labels
    waited_s: float
    ran_s: float


@dataclass(eq=False)
class _Job:
    pixels: Pixels
    done: "asyncio.Future[Answer]"
    arrived: float


class RunQueue:
    """Runs requests one after the other, or several at once where the model has a batch.

    Everything but the model itself happens on the event loop; the thread that opens the model also runs and closes it,
    as CUDA wants.

    Args:
        segmenter: the model, not open yet.
        size: requests that may wait.
        metrics: where runs are counted.
    """

    def __init__(self, segmenter: Segmenter, size: int, metrics: Metrics) -> None:
        self._segmenter = segmenter
        self._size = size
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="runtime")
        self._waiting: deque[_Job] = deque()
        self._arrived = asyncio.Event()
        self._worker: asyncio.Task[None] | None = None
        metrics.watch("waiting", "Requests that wait for the runtime.", lambda: len(self._waiting))

    async def open(self) -> None:
        """Load the model, run it once, and begin to take requests.

        Raises:
            BundleError: the runtime refuses the model.
            ProviderError: the provider asked for would not run.
        """
        await self._in_thread(self._segmenter.__enter__)
        photo = mean_image(self._segmenter.height, self._segmenter.width)
        await self._in_thread(lambda: self._labels(photo[None]))
        self._worker = asyncio.create_task(self._work())

    async def submit(self, pixels: Pixels) -> Answer:
        """Labels of n x H x W x 3 pixels, n at most the model's batch; given up when the caller is cancelled.

        Raises:
            Refusal: too many wait already.
        """
        if len(self._waiting) >= self._size:
            raise busy(f"{len(self._waiting)} requests wait for the model already, and no more than {self._size} may")
        job = _Job(pixels, asyncio.get_running_loop().create_future(), time.perf_counter())
        self._waiting.append(job)
        self._arrived.set()
        try:
            return await job.done
        finally:
            if job in self._waiting:
                self._waiting.remove(job)

    async def close(self) -> None:
        """Wait for the run that is going on, give up those that wait, and close the model."""
        if self._worker is not None:
            self._worker.cancel()
            await asyncio.gather(self._worker, return_exceptions=True)
            _give_up(self._waiting, asyncio.CancelledError())
            await self._in_thread(lambda: self._segmenter.__exit__(None, None, None))
        self._thread.shutdown()

    async def _work(self) -> None:
        while True:
            await self._arrived.wait()
            jobs = self._next()
            if jobs:
                await self._run(jobs)
            else:
                self._arrived.clear()

    def _next(self) -> list[_Job]:
        """The oldest requests that fit one run."""
        jobs: list[_Job] = []
        room = self._segmenter.batch
        while self._waiting and len(self._waiting[0].pixels) <= room:
            job = self._waiting.popleft()
            if not job.done.done():
                jobs.append(job)
                room -= len(job.pixels)
        return jobs

    async def _run(self, jobs: list[_Job]) -> None:
        pixels = jobs[0].pixels if len(jobs) == 1 else np.concatenate([job.pixels for job in jobs])
        start = time.perf_counter()
        try:
            labels, seconds = await self._in_thread(lambda: self._labels(pixels))
        except BaseException as error:
            _give_up(jobs, error)
            if not isinstance(error, Exception):
                raise
            return  # whatever a runtime raises is the answer to these requests, not the queue's end
        self._metrics.ran(len(pixels), seconds)
        for job in jobs:
            own, labels = labels[: len(job.pixels)], labels[len(job.pixels) :]
            if not job.done.done():
                job.done.set_result(Answer(own, start - job.arrived, seconds))

    def _labels(self, pixels: Pixels) -> tuple[Labels, float]:
        feed = self._segmenter.feed(list(pixels))
        start = time.perf_counter()
        outputs = self._segmenter.run(feed)
        seconds = time.perf_counter() - start
        return self._segmenter.labels(outputs), seconds

    async def _in_thread(self, work: Callable[[], _T]) -> _T:
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)


def _give_up(jobs: Iterable[_Job], error: BaseException) -> None:
    for job in jobs:
        if isinstance(error, asyncio.CancelledError):
            job.done.cancel()
        elif not job.done.done():
            job.done.set_exception(error)
