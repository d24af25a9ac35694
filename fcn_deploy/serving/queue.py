"""Between the event loop and the runtime: one thread that runs the model, and a bounded queue in front of it."""

import asyncio
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from fcn_deploy.images import Labels, Pixels, mean_image
from fcn_deploy.segmentation import Segmenter
from fcn_deploy.serving.handing import reject, resolve
from fcn_deploy.serving.metrics import Metrics
from fcn_deploy.serving.refusals import busy


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
    arrived: float = field(default_factory=time.perf_counter)


class RunQueue:
    """Runs requests one after the other, or several at once where the model has a batch.

    The thread that opens the model also runs and closes it, as CUDA wants. Made and used on an event loop.

    Args:
        segmenter: the model, not open yet.
        size: requests that may wait.
        metrics: where runs are counted.
    """

    def __init__(self, segmenter: Segmenter, size: int, metrics: Metrics) -> None:
        self._segmenter = segmenter
        self._size = size
        self._metrics = metrics
        self._waiting: deque[_Job] = deque()
        self._changed = threading.Condition()
        self._open = False
        self._loop = asyncio.get_running_loop()
        self._opened: asyncio.Future[None] = self._loop.create_future()
        self._closed = asyncio.Event()
        self._thread = threading.Thread(target=self._live, name="runtime")
        metrics.watch("waiting", "Requests that wait for the runtime.", lambda: len(self._waiting))

    async def open(self) -> None:
        """Load the model, run it once, and begin to take requests.

        Raises:
            BundleError: the runtime refuses the model.
            ProviderError: the provider asked for would not run.
        """
        self._open = True
        self._thread.start()
        await self._opened

    async def submit(self, pixels: Pixels) -> Answer:
        """Labels of n x H x W x 3 pixels, n at most the model's batch; given up when the caller is cancelled.

        Raises:
            Refusal: too many wait already.
        """
        if len(self._waiting) >= self._size:
            raise busy(f"{len(self._waiting)} requests wait for the model already, and no more than {self._size} may")
        job = _Job(pixels, self._loop.create_future())
        with self._changed:
            self._waiting.append(job)
            self._changed.notify()
        try:
            return await job.done
        except asyncio.CancelledError:
            with self._changed:
                if job in self._waiting:
                    self._waiting.remove(job)
            raise

    async def close(self) -> None:
        """Wait for the run that is going on, give up those that wait, and close the model."""
        with self._changed:
            self._open = False
            self._changed.notify()
        if self._thread.ident is not None:
            await self._closed.wait()
        for job in self._waiting:
            job.done.cancel()

    def _live(self) -> None:
        """All that happens in the thread."""
        try:
            with self._segmenter:
                self._labels(mean_image(self._segmenter.height, self._segmenter.width)[None])
                self._on_loop(resolve, self._opened, None)
                while self._run(self._next()):
                    pass
        except BaseException as error:  # the one that waits for the model raises it
            self._on_loop(reject, [self._opened], error)
        finally:
            self._on_loop(self._closed.set)

    def _next(self) -> list[_Job]:
        """Wait for requests; the oldest that fit one run, or nothing at the end."""
        jobs: list[_Job] = []
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or not self._open)
            room = self._segmenter.batch if self._open else 0
            while self._waiting and len(self._waiting[0].pixels) <= room:
                jobs.append(self._waiting.popleft())
                room -= len(jobs[-1].pixels)
        return jobs

    def _run(self, jobs: list[_Job]) -> bool:
        """Run requests and answer them; without any, say that this was the end."""
        if not jobs:
            return False
        start = time.perf_counter()
        try:
            pixels = jobs[0].pixels if len(jobs) == 1 else np.concatenate([job.pixels for job in jobs])
            labels, seconds = self._labels(pixels)
        except Exception as error:  # whatever a runtime raises is the answer to these requests, not the queue's end
            self._on_loop(reject, [job.done for job in jobs], error)
        else:
            self._on_loop(_deliver, jobs, labels, start, seconds)
            self._metrics.ran(len(pixels), seconds)
        return True

    def _labels(self, pixels: Pixels) -> tuple[Labels, float]:
        feed = self._segmenter.feed(list(pixels))
        start = time.perf_counter()
        outputs = self._segmenter.run(feed)
        seconds = time.perf_counter() - start
        return self._segmenter.labels(outputs), seconds

    def _on_loop(self, work: Callable[..., None], *arguments: Any) -> None:
        self._loop.call_soon_threadsafe(work, *arguments)


def _deliver(jobs: list[_Job], labels: Labels, start: float, seconds: float) -> None:
    first = 0
    for job in jobs:
        last = first + len(job.pixels)
        resolve(job.done, Answer(labels[first:last], start - job.arrived, seconds))
        first = last
