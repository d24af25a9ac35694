"""Between the event loop and the runtime: one thread that runs the model, and a bounded queue in front of it."""

import asyncio
import threading
import time
from collections import deque
from concurrent.futures import Future
from dataclasses import dataclass, field

import numpy as np

from fcn_deploy.images import Labels, Pixels, mean_image
from fcn_deploy.segmentation import Segmenter
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
    done: "Future[Answer]" = field(default_factory=Future)
    arrived: float = field(default_factory=time.perf_counter)


class RunQueue:
    """Runs requests one after the other, or several at once where the model has a batch.

    Requests come from any thread. The thread that opens the model also runs and closes it, as CUDA wants.

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
        self._closing = False
        self._opened: Future[None] = Future()
        self._thread = threading.Thread(target=self._live, name="runtime")
        metrics.watch("waiting", "Requests that wait for the runtime.", lambda: len(self._waiting))

    async def open(self) -> None:
        """Load the model, run it once, and begin to take requests.

        Raises:
            BundleError: the runtime refuses the model.
            ProviderError: the provider asked for would not run.
        """
        self._thread.start()
        await asyncio.wrap_future(self._opened)

    def submit(self, pixels: Pixels) -> "Future[Answer]":
        """Labels of n x H x W x 3 pixels, n at most the model's batch; a request that is cancelled is not run.

        Raises:
            Refusal: too many wait already.
        """
        job = _Job(pixels)
        with self._changed:
            if len(self._waiting) >= self._size:
                raise busy(
                    f"{len(self._waiting)} requests wait for the model already, and no more than {self._size} may"
                )
            self._waiting.append(job)
            self._changed.notify()
        job.done.add_done_callback(lambda _: self._forget(job))
        return job.done

    async def close(self) -> None:
        """Wait for the run that is going on, give up those that wait, and close the model."""
        with self._changed:
            self._closing = True
            self._changed.notify()
        if self._thread.ident is not None:
            await asyncio.to_thread(self._thread.join)
        for job in tuple(self._waiting):
            job.done.cancel()

    def _forget(self, job: _Job) -> None:
        """Make room when a request is cancelled before its turn."""
        if job.done.cancelled():
            with self._changed:
                if job in self._waiting:
                    self._waiting.remove(job)

    def _live(self) -> None:
        """All that happens in the thread."""
        try:
            with self._segmenter:
                self._labels(mean_image(self._segmenter.height, self._segmenter.width)[None])
                self._opened.set_result(None)
                while (jobs := self._next()) is not None:
                    if jobs:
                        self._run(jobs)
        except BaseException as error:  # the one that waits for the model raises it
            if self._opened.done():
                raise
            self._opened.set_exception(error)

    def _next(self) -> list[_Job] | None:
        """Wait for requests; the oldest that fit one run, or None at the end."""
        jobs: list[_Job] = []
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._closing)
            if self._closing:
                return None
            room = self._segmenter.batch
            while self._waiting and len(self._waiting[0].pixels) <= room:
                job = self._waiting.popleft()
                if job.done.set_running_or_notify_cancel():
                    jobs.append(job)
                    room -= len(job.pixels)
        return jobs

    def _run(self, jobs: list[_Job]) -> None:
        start = time.perf_counter()
        try:
            pixels = np.concatenate([job.pixels for job in jobs]) if len(jobs) > 1 else jobs[0].pixels
            labels, seconds = self._labels(pixels)
        except Exception as error:  # whatever a runtime raises is the answer to these requests, not the queue's end
            for job in jobs:
                job.done.set_exception(error)
            return
        first = 0
        for job in jobs:
            last = first + len(job.pixels)
            job.done.set_result(Answer(labels[first:last], start - job.arrived, seconds))
            first = last
        self._metrics.ran(len(pixels), seconds)

    def _labels(self, pixels: Pixels) -> tuple[Labels, float]:
        feed = self._segmenter.feed(list(pixels))
        start = time.perf_counter()
        outputs = self._segmenter.run(feed)
        seconds = time.perf_counter() - start
        return self._segmenter.labels(outputs), seconds
