"""OpenVINO on a CPU: the only module that names it."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import openvino

from fcn_deploy.runtime.base import Arrays, Bound

VERSION = openvino.__version__.split("-")[0]


class OpenVinoBound(Bound):
    """An ONNX file compiled for this CPU, in float32 arithmetic (on newer CPUs the default is bfloat16)."""

    def __init__(self, path: Path, threads: int | None) -> None:
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._names = [port.get_any_name() for port in compiled.inputs]
        self._outputs = [port.get_any_name() for port in compiled.outputs]

    def upload(self, feeds: Arrays) -> None:
        """Copy the inputs to where OpenVINO reads them."""
        for name in self._names:
            self._request.get_tensor(name).data[:] = feeds[name]

    def launch(self) -> None:
        """Compute the outputs."""
        self._request.infer()

    def wait(self) -> None:
        """Nothing is left to do when a launch returns."""

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Copies of the outputs."""
        return {name: np.array(self._request.get_tensor(name).data) for name in self._outputs}
