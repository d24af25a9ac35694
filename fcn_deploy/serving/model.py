"""The model that HTTP and gRPC share: whether requests are accepted, and what it answers."""

import asyncio
import contextlib
from collections.abc import Iterator
from enum import StrEnum
from http import HTTPStatus
from pathlib import Path
from typing import Any

from fcn_deploy.installation import __version__
from fcn_deploy.segmentation import Segmenter
from fcn_deploy.serving.metrics import ServerMetrics
from fcn_deploy.serving.options import ServeOptions, model_name_of
from fcn_deploy.serving.protocol import ModelInterface, RequestError, unavailable
from fcn_deploy.serving.queue import BatchQueue


class ServerState(StrEnum):
    """What a server is doing, for messages."""

    LOADING = "loading its model"
    READY = "ready"
    DRAINING = "shutting down"


class ModelService:
    """A served artifact with its queue. Requests are accepted while it is ready; accepted requests are counted.

    Attributes:
        name: in the protocol.
        segmenter: the model's facts and size; only the queue runs it.
        interface: what requests have to look like.
        queue: where pixels become labels.
        in_flight: requests that were accepted and are not answered yet.

    Raises:
        BundleError: the artifact is missing or damaged.
    """

    def __init__(self, path: Path, options: ServeOptions, metrics: ServerMetrics) -> None:
        self.segmenter = Segmenter(path, options.provider)
        self.name = options.name or model_name_of(path.resolve().stem)
        self.interface = ModelInterface(self.segmenter.batch, self.segmenter.height, self.segmenter.width)
        self.queue = BatchQueue(self.segmenter, options.queue_size, metrics)
        self.state = ServerState.LOADING
        self.in_flight = 0
        self._metrics = metrics
        self._idle = asyncio.Event()
        self._idle.set()
        metrics.watch("in_flight", "Accepted requests.", lambda: self.in_flight)

    @property
    def ready(self) -> bool:
        """Whether requests are accepted."""
        return self.state is ServerState.READY

    async def load(self) -> None:
        """Load the model, run it once, and begin to accept requests.

        Raises:
            BundleError: the runtime cannot load the model.
            ProviderError: the provider asked for would not run.
        """
        await self.queue.open()
        self._metrics.describe_model(self.name, self.segmenter.info, self.segmenter.runner_name)
        self.state = ServerState.READY

    async def drain(self) -> None:
        """Accept no more requests, and wait until the accepted ones are answered."""
        self.state = ServerState.DRAINING
        await self._idle.wait()

    @contextlib.contextmanager
    def accepted(self) -> Iterator[None]:
        """Count a request as accepted for the length of the block.

        Raises:
            RequestError: the server is not ready.
        """
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
        """Check that requests are accepted.

        Raises:
            RequestError: the model is not loaded yet, or the server is shutting down.
        """
        if not self.ready:
            raise unavailable(f"the server is {self.state}")

    def check_name(self, name: str) -> None:
        """Check that a request is for this model.

        Raises:
            RequestError: it is for another.
        """
        if name != self.name:
            raise RequestError(HTTPStatus.NOT_FOUND, f"no model {name!r} is served here", "GET /v2/models lists it.")

    def metadata(self) -> dict[str, Any]:
        """Return name, inputs and outputs of the model, as the protocol describes them."""
        return {"name": self.name, "platform": ""} | self.interface.describe()


def server_metadata() -> dict[str, Any]:
    """Return name, version and extensions of the server, as the protocol describes them."""
    return {"name": "fcn-deploy", "version": __version__, "extensions": ["binary_tensor_data"]}
