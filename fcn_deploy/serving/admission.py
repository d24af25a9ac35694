"""Who is let in, and when the last one has left."""

import asyncio
import contextlib
from collections.abc import Iterator
from enum import StrEnum

from fcn_deploy.serving.refusals import busy


class State(StrEnum):
    """What a server is doing."""

    LOADING = "loading its model"
    READY = "ready"
    DRAINING = "shutting down"


class Admission:
    """Lets requests in while the server is ready, and counts those inside.

    Attributes:
        state: set by the server.
        inside: requests that were let in and are not answered yet.
    """

    def __init__(self) -> None:
        self.state = State.LOADING
        self.inside = 0
        self._empty = asyncio.Event()
        self._empty.set()

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
        if not self.ready:
            raise busy(f"the server is {self.state}", closes=self.state is State.DRAINING)
        self.inside += 1
        self._empty.clear()
        try:
            yield
        finally:
            self.inside -= 1
            if not self.inside:
                self._empty.set()

    async def drained(self) -> None:
        """Let nobody in any more, and wait until nobody is inside."""
        self.state = State.DRAINING
        await self._empty.wait()
