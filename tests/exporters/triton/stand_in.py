"""Runs the model.onnx beside it inside Triton's Python backend, as the ONNX Runtime backend would.

Tests put it into the folders of models whose backend is not in the server they have, so that everything else of a
package, shapes, batches, ensembles, is Triton's own doing.
"""

import ctypes
import json
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
import triton_python_backend_utils as pb_utils


class TritonPythonModel:
    def initialize(self, args: dict[str, str]) -> None:
        config = json.loads(args["model_config"])
        self.batched = config["max_batch_size"] > 0
        (self.input,), (self.output,) = config["input"], config["output"]
        path = Path(args["model_repository"]) / args["model_version"] / "model.onnx"
        self.session = ort.InferenceSession(path, providers=["CPUExecutionProvider"])

    def execute(self, requests: list[Any]) -> list[Any]:
        name = self.input["name"]
        given = [np.from_dlpack(pb_utils.get_input_tensor_by_name(request, name)) for request in requests]
        if self.batched:
            (together,) = self.session.run([self.output["name"]], {name: np.concatenate(given)})
            made = np.split(together, np.cumsum([len(array) for array in given])[:-1])
        else:
            made = [self.session.run([self.output["name"]], {name: array})[0] for array in given]
        return [self.response(np.ascontiguousarray(array)) for array in made]

    def response(self, array: np.ndarray) -> Any:
        capsule: Any = array.__dlpack__()
        # The backend frees the array itself; see exporters/triton/python_backend/model.py.
        ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack(self.output["name"], capsule)])
