"""Results handed from threads to the event loop, and forgotten there.

Futures of `concurrent.futures` keep their callbacks, and with those themselves and their result, until the garbage
collector comes by; at a megabyte a request that is hundreds of megabytes.
"""

import asyncio
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any, TypeVar

T = TypeVar("T")


async def aside(executor: Executor, work: Callable[[], T]) -> T:
    """What `work` returns, done in another thread; not begun if the caller has been cancelled by then."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[T] = loop.create_future()

    def run() -> None:
        if done.cancelled():
            return
        try:
            result = work()
        except Exception as error:
            loop.call_soon_threadsafe(reject, [done], error)
        else:
            loop.call_soon_threadsafe(resolve, done, result)

    executor.submit(run)
    return await done


def resolve(future: "asyncio.Future[Any]", result: Any) -> None:
    """Set a result, unless the one who waited for it has left."""
    if not future.done():
        future.set_result(result)


def reject(futures: "Iterable[asyncio.Future[Any]]", error: BaseException) -> None:
    """Set an error, where someone still waits for it."""
    for future in futures:
        if not future.done():
            future.set_exception(error)
