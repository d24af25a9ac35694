"""The artifact as KServe knows a model."""

import uuid
from typing import Any

from fcn_deploy.images import Pixels
from fcn_deploy.installation import __version__
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME
from fcn_deploy.serving.admission import Admission
from fcn_deploy.serving.queue import RunQueue
from fcn_deploy.serving.sdk import (
    DataPlane,
    InferInput,
    InferOutput,
    InferRequest,
    InferResponse,
    Model,
    ModelRepository,
)
from fcn_deploy.serving.tensors import DATATYPE, Interface

_US_PER_S = 1e6


class ServedModel(Model):  # type: ignore[misc] # KServe has no types
    """Answers KServe's requests from the queue; whether it is ready is the server's affair."""

    def __init__(self, name: str, interface: Interface, queue: RunQueue, admission: Admission) -> None:
        super().__init__(name)
        self._interface = interface
        self._queue = queue
        self._admission = admission

    def get_input_types(self) -> list[dict[str, Any]]:
        """Name, datatype and shape of the input."""
        return self._interface.inputs

    def get_output_types(self) -> list[dict[str, Any]]:
        """Name, datatype and shape of the output."""
        return self._interface.outputs

    async def healthy(self) -> bool:
        """Whether requests are answered."""
        return self._admission.ready

    def load(self) -> bool:
        """Leave the model as it is: KServe would load it when a request finds it not ready."""
        return self._admission.ready

    async def predict(self, payload: InferRequest, *_: Any) -> InferResponse:
        """Labels of a request that `request_for` made, with microseconds of waiting and of the model's run."""
        answer = await self._queue.submit(payload.inputs[0].data)
        labels = answer.labels
        return InferResponse(
            payload.id or str(uuid.uuid4()),
            self.name,
            [InferOutput(LABELS_NAME, list(labels.shape), DATATYPE, data=labels)],
            parameters={"queue_us": int(answer.waited_s * _US_PER_S), "run_us": int(answer.ran_s * _US_PER_S)},
            use_binary_outputs=payload.parameters["binary_data_output"],
        )


class ServerPlane(DataPlane):  # type: ignore[misc] # KServe has no types
    """KServe's data plane for one model, ready when the server is."""

    def __init__(self, model: ServedModel, admission: Admission) -> None:
        repository = ModelRepository()
        repository.update(model)
        super().__init__(repository)
        self._admission = admission

    def metadata(self) -> dict[str, Any]:
        """Name, version and extensions of the server."""
        return {"name": "fcn-deploy", "version": __version__, "extensions": ["binary_tensor_data"]}

    async def ready(self) -> bool:
        """Whether requests are answered."""
        return self._admission.ready


def request_for(name: str, pixels: Pixels, call_id: str, *, binary: bool) -> InferRequest:
    """KServe's request for n x H x W x 3 pixels that have been checked."""
    given = InferInput(PIXELS_NAME, list(pixels.shape), DATATYPE, data=pixels)
    return InferRequest(name, [given], call_id, parameters={"binary_data_output": binary})
