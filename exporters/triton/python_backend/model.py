"""Label photos of any size with an artifact of fcn-deploy; Triton's Python backend runs this file.

The Python that runs it needs fcn-deploy and its runtime. The settings are in config.pbtxt, the artifact beside this
file. Arrays are passed by DLPack, because the backend's own conversion is bound to one major version of NumPy.
"""

import ctypes
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import triton_python_backend_utils as pb_utils

import fcn_deploy as fd

Photo = npt.NDArray[np.uint8]


class TritonPythonModel:
    """The class that the backend calls; one object per instance of the model, each in its own process."""

    def initialize(self, args: dict[str, str]) -> None:
        """Open the artifact, which checks its hashes."""
        config = json.loads(args["model_config"])
        parameters = {name: value["string_value"] for name, value in config["parameters"].items()}
        folder = Path(args["model_repository"]) / args["model_version"]
        self._batched = config["max_batch_size"] > 0
        self._segmenter = fd.Segmenter(folder / parameters["artifact"], fd.Provider(parameters["provider"]))
        self._segmenter.__enter__()

    def execute(self, requests: Sequence[Any]) -> list[Any]:
        """Return one response for each request, in order; the photos of all requests share runs of the model."""
        received = [self._photos(request) for request in requests]
        problems = [_problem(photos) for photos in received]
        valid = [photos if problem is None else () for photos, problem in zip(received, problems, strict=True)]
        labels = iter(self._labels([photo for photos in valid for photo in photos]))
        return [
            self._response([next(labels) for _ in photos]) if problem is None else _refusal(problem)
            for photos, problem in zip(valid, problems, strict=True)
        ]

    def finalize(self) -> None:
        """Close the runtime."""
        self._segmenter.__exit__(None, None, None)

    def _photos(self, request: Any) -> Sequence[Photo]:
        pixels: Any = np.from_dlpack(pb_utils.get_input_tensor_by_name(request, "pixels"))
        return list(pixels) if self._batched else [pixels]

    def _labels(self, photos: Sequence[Photo]) -> list[Photo]:
        """Return h x w uint8 labels of each photo, in its own size."""
        segmenter, found = self._segmenter, []
        for start in range(0, len(photos), segmenter.batch):
            fitted = [segmenter.fit(photo, keep_aspect=False) for photo in photos[start : start + segmenter.batch]]
            labels = segmenter.labels(segmenter.run(segmenter.feed([one.canvas for one in fitted])))
            found += [one.placement.restore(label) for one, label in zip(fitted, labels, strict=False)]
        return found

    def _response(self, labels: list[Photo]) -> Any:
        stacked = np.stack(labels) if self._batched else labels[0]
        return pb_utils.InferenceResponse([pb_utils.Tensor.from_dlpack("labels", _exported(stacked))])


def _exported(array: Photo) -> Any:
    """Return an array as a DLPack capsule without NumPy's destructor.

    The backend frees the array itself, but renames the capsule to a name that NumPy's destructor does not know, which
    would then report an error for every response.
    """
    capsule: Any = array.__dlpack__()
    ctypes.pythonapi.PyCapsule_SetDestructor(ctypes.py_object(capsule), None)
    return capsule


def _problem(photos: Sequence[Photo]) -> str | None:
    """Return why photos cannot be labelled, or None; Triton has checked types and the last dimension."""
    height, width = photos[0].shape[:2]
    if not 1 <= height * width <= fd.MAX_PIXELS:
        return f"a photo of {height}x{width} pixels: 1 to {fd.MAX_PIXELS} are labelled"
    return None


def _refusal(problem: str) -> Any:
    return pb_utils.InferenceResponse(error=pb_utils.TritonError(problem, pb_utils.TritonError.INVALID_ARG))
