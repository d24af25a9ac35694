"""Work in threads that keeps its order, and never runs further ahead than it may."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Threads(ThreadPoolExecutor):
    """Threads that drop what has not begun when the block ends, be it by an error."""

    def __exit__(self, *_: object) -> None:
        self.shutdown(wait=True, cancel_futures=True)


def ahead(pool: Executor, function: Callable[[Item], Result], items: Iterable[Item], limit: int) -> Iterator[Result]:
    """`map` in order, at most `limit` items ahead of whoever reads the results; raises what `function` raises."""
    pending: deque[Future[Result]] = deque()
    for item in items:
        pending.append(pool.submit(function, item))
        while pending and (len(pending) >= limit or pending[0].done()):
            yield pending.popleft().result()
    while pending:
        yield pending.popleft().result()
