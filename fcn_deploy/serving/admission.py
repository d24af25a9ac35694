"""Who is let in, and when the last one has left."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from enum import StrEnum

from fcn_deploy.serving.refusals import busy


class State(StrEnum):
    """What a server is doing."""

    LOADING = "loading its model"
    READY = "ready"
    DRAINING = "shutting down"


class Admission:
    """Lets requests in while the server is ready, and counts those inside; they may be in any thread.

    Attributes:
        state: set by the server.
        inside: requests that were let in and are not answered yet.
    """

    def __init__(self) -> None:
        self.state = State.LOADING
        self.inside = 0
        self._lock = threading.Lock()
        self._loop = asyncio.get_running_loop()
        self._empty = asyncio.Event()

    @property
    def ready(self) -> bool:
        """Whether requests are let in."""
        return self.state is State.READY

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Be inside for the length of the block.

        Raises:
            Refusal: the server is not ready, or not any more.
        """
        with self._lock:
            if not self.ready:
                raise busy(f"the server is {self.state}", closes=self.state is State.DRAINING)
            self.inside += 1
        try:
            yield
        finally:
            self._leave()

    def _leave(self) -> None:
        with self._lock:
            self.inside -= 1
            last = not self.inside and self.state is State.DRAINING
        if last:
            self._loop.call_soon_threadsafe(self._empty.set)

    async def drained(self) -> None:
        """Let nobody in any more, and wait until nobody is inside."""
        with self._lock:
            self.state = State.DRAINING
            if not self.inside:
                return
        await self._empty.wait()
