"""The queue before the model: its order, its bound, its batches, and what becomes of those who leave."""

import asyncio
import gc
import threading
import weakref
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tritonclient.utils import InferenceServerException

import fcn_deploy as fd
from fcn_deploy.images import Labels, Pixels
from fcn_deploy.runtime.base import Arrays
from fcn_deploy.serving.metrics import ServerMetrics
from fcn_deploy.serving.model import BatchQueue, run_in_thread
from fcn_deploy.serving.protocol import RequestError
from tests.fcn_deploy.serving.clients import (
    INFER,
    binary_request,
    call,
    exposed,
    grpc_client,
    grpc_infer,
    http_client,
    http_infer,
    noise,
    wait_for_metric,
)
from tests.fcn_deploy.serving.conftest import OPTIONS, Held


class Sums:
    """A stand-in for a model: labels are the pixels' red channel; runs wait to be let go after the first."""

    height = width = 4

    def __init__(self, batch: int) -> None:
        self.batch = batch
        self.runs: list[int] = []
        self.begun, self.going = threading.Semaphore(0), threading.Semaphore(1)
        self.fails = False

    def __enter__(self) -> "Sums":
        self.thread = threading.current_thread()
        return self

    def __exit__(self, *_: object) -> None:
        assert self.thread is threading.current_thread()
        self.thread = threading.main_thread()

    def empty_canvas(self) -> Pixels:
        return np.zeros((self.height, self.width, 3), np.uint8)

    def feed(self, canvases: list[Pixels]) -> Arrays:
        return {"pixels": np.stack(canvases)}

    def run(self, feed: Arrays) -> Arrays:
        assert self.thread is threading.current_thread()
        self.begun.release()
        assert self.going.acquire(timeout=20)
        self.runs.append(len(feed["pixels"]))
        if self.fails:
            raise ValueError("no such luck")
        return {"labels": feed["pixels"][..., 0]}

    def labels(self, outputs: Arrays) -> Labels:
        return np.asarray(outputs["labels"])


def photos(count: int, value: int) -> Pixels:
    return np.full((count, 4, 4, 3), value, np.uint8)


async def opened(model: Sums, size: int = 100) -> BatchQueue:
    queue = BatchQueue(model, size, ServerMetrics())  # type: ignore[arg-type]
    await queue.open()
    await began(model)
    return queue


async def began(model: Sums) -> None:
    assert await asyncio.to_thread(model.begun.acquire, timeout=20)


async def submitted(queue: BatchQueue, *requests: Pixels) -> "list[asyncio.Task[list[int]]]":
    async def labels(pixels: Pixels) -> list[int]:
        return [int(photo[0, 0]) for photo in (await queue.submit(pixels)).labels]

    tasks = [asyncio.create_task(labels(pixels)) for pixels in requests]
    await asyncio.sleep(0)
    return tasks


def test_each_request_gets_its_own_labels_and_batches_are_filled() -> None:
    async def main() -> None:
        model = Sums(batch=3)
        queue = await opened(model)
        tasks = await submitted(queue, photos(1, 10))
        await began(model)
        tasks += await submitted(queue, photos(1, 20), photos(2, 30), photos(2, 40), photos(3, 50), photos(1, 60))
        model.going.release(10)
        assert await asyncio.gather(*tasks) == [[10], [20], [30, 30], [40, 40], [50, 50, 50], [60]]
        assert model.runs == [1, 1, 3, 2, 3, 1]
        await queue.close()

    asyncio.run(main())


def test_one_more_than_may_wait_is_refused() -> None:
    async def main() -> None:
        model = Sums(batch=1)
        queue = await opened(model, size=2)
        tasks = await submitted(queue, photos(1, 1))
        await began(model)
        tasks += await submitted(queue, photos(1, 2), photos(1, 3))
        with pytest.raises(RequestError, match="2 requests wait for the model, and at most 2 may") as caught:
            await queue.submit(photos(1, 4))
        assert caught.value.status == 503
        model.going.release(3)
        assert await asyncio.gather(*tasks) == [[1], [2], [3]]
        await queue.close()

    asyncio.run(main())


def test_who_leaves_makes_room_and_is_not_run() -> None:
    async def main() -> None:
        model = Sums(batch=1)
        queue = await opened(model, size=1)
        (first,) = await submitted(queue, photos(1, 1))
        await began(model)
        (leaving,) = await submitted(queue, photos(1, 2))
        leaving.cancel()
        await asyncio.gather(leaving, return_exceptions=True)
        (last,) = await submitted(queue, photos(1, 3))
        first.cancel()
        model.going.release(2)
        assert await last == [3]
        assert model.runs == [1, 1, 1]
        await queue.close()

    asyncio.run(main())


def test_a_run_that_fails_is_the_end_of_its_requests_only() -> None:
    async def main() -> None:
        model = Sums(batch=1)
        queue = await opened(model)
        model.fails = True
        (failing,) = await submitted(queue, photos(1, 1))
        model.going.release(2)
        with pytest.raises(ValueError, match="no such luck"):
            await failing
        model.fails = False
        assert (await queue.submit(photos(1, 2))).labels[0, 0, 0] == 2
        await queue.close()

    asyncio.run(main())


def test_those_who_wait_when_it_closes_are_given_up() -> None:
    async def main() -> None:
        model = Sums(batch=1)
        queue = await opened(model)
        running, waiting = await submitted(queue, photos(1, 1), photos(1, 2))
        await began(model)
        closing = asyncio.create_task(queue.close())
        await asyncio.sleep(0)
        model.going.release()
        await closing
        assert model.thread is threading.main_thread()
        assert await running == [1]
        with pytest.raises(asyncio.CancelledError):
            await waiting

    asyncio.run(main())


def test_nothing_of_an_answered_request_is_left_to_the_garbage_collector() -> None:
    async def main() -> None:
        model = Sums(batch=1)
        queue = await opened(model)
        model.going.release()
        with ThreadPoolExecutor(1) as executor:
            pixels = await run_in_thread(executor, lambda: photos(1, 7))
        answer = await queue.submit(pixels)
        alive: list[weakref.ref[Any]] = [weakref.ref(pixels), weakref.ref(answer.labels), weakref.ref(answer)]
        del pixels, answer
        await queue.close()
        assert [reference() is None for reference in alive] == [True, True, True]

    gc.disable()
    try:
        asyncio.run(main())
    finally:
        gc.enable()


def test_the_longest_queue_over_http_and_grpc(shared_bundle: Path, held: Held) -> None:
    options = replace(OPTIONS, queue_size=1)
    answers: list[Pixels] = []

    def answered(server: fd.Server, seed: int) -> None:
        with http_client(server) as client:
            answers.append(http_infer(client, noise(seed=seed)))

    with fd.Server(shared_bundle, options) as server:
        clients = [threading.Thread(target=answered, args=(server, seed)) for seed in range(2)]
        clients[0].start()
        assert held.begun.acquire(timeout=20)
        clients[1].start()
        wait_for_metric(server, "waiting", 1)
        status, answer, headers = call(server, INFER, *binary_request(noise()))
        with grpc_client(server) as client, pytest.raises(InferenceServerException, match="at most 1") as caught:
            grpc_infer(client, noise())
        held.going.set()
        for client_thread in clients:
            client_thread.join()
        text = exposed(server)

    assert (status, headers["retry-after"]) == (503, "1")
    assert "1 requests wait for the model, and at most 1 may. Try again after 1 s." in answer["error"]
    assert caught.value.status() == "StatusCode.UNAVAILABLE"
    assert len(answers) == 2
    assert 'fcn_deploy_requests_total{outcome="refused",protocol="http"} 1.0' in text
    assert 'fcn_deploy_requests_total{outcome="refused",protocol="grpc"} 1.0' in text
