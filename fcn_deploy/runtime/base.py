"""The runner every runtime implements, and the checks they share."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from fcn_deploy.errors import UsageError
from fcn_deploy.images import Labels, Pixels
from fcn_deploy.model_info import LABELS_NAME, TensorSpec
from fcn_deploy.preprocessing import Preprocessing

Arrays = Mapping[str, npt.NDArray[Any]]


class Runner(ABC):
    """Runs one model: a context manager from arrays by name to arrays by name."""

    name: str  # what runs, for reports, e.g. `ONNX Runtime 1.31.1 CPU`.
    inputs: tuple[TensorSpec, ...]  # names, shapes and types for `run`, known once the runner is open

    def __enter__(self) -> Self:
        self._open()
        return self

    def __exit__(self, *_error: object) -> None:
        self._close()

    def run(self, feeds: Arrays) -> dict[str, npt.NDArray[Any]]:
        """Compute every output for `feeds`; raises UsageError if a name, shape or dtype is not one of `inputs`."""
        given = {TensorSpec.of(name, array) for name, array in feeds.items()}
        if given != set(self.inputs):
            raise UsageError(
                f"{self.name} expects {_listed(self.inputs)}; it got {_listed(sorted(given, key=str))}",
                remedy="Feed exactly these names, shapes and types.",
            )
        return self._run({name: np.ascontiguousarray(array) for name, array in feeds.items()})

    @abstractmethod
    def _open(self) -> None: ...

    @abstractmethod
    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]: ...

    @abstractmethod
    def _close(self) -> None: ...


class Bound(ABC):
    """A model with fixed buffers for inputs and outputs, to be run repeatedly or timed part by part."""

    @abstractmethod
    def upload(self, feeds: Arrays) -> None:
        """Copy inputs to the model's buffers, and wait for the copies."""

    @abstractmethod
    def launch(self) -> None:
        """Begin to compute the outputs of the last upload; a CPU has finished when this returns."""

    @abstractmethod
    def wait(self) -> None:
        """Wait until the last launch has finished."""

    def run(self) -> None:
        """Compute the outputs of the last upload, and wait for them."""
        self.launch()
        self.wait()

    @abstractmethod
    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Copy the last outputs to the host."""


def _listed(specs: "tuple[TensorSpec, ...] | list[TensorSpec]") -> str:
    return ", ".join(str(spec) for spec in specs) or "nothing"


def feed_of(spec: TensorSpec, pixels: Pixels, preprocessing: Preprocessing) -> dict[str, npt.NDArray[Any]]:
    """Return N x H x W x 3 uint8 RGB pixels in the form of the input `spec`: unchanged or pre-processed."""
    return {spec.name: pixels if spec.dtype == "uint8" else preprocessing.apply(pixels).astype(spec.dtype, copy=False)}


_STRIP_ROWS = 32


def labels_of(outputs: Arrays, boundary: float = 0.0) -> Labels:
    """Return N x H x W uint8 labels from a model's only output: its labels, or the class of the largest logit.

    Of a single class, pixels whose logit is above `boundary` are labelled 1.
    """
    if LABELS_NAME in outputs:
        return np.asarray(outputs[LABELS_NAME], dtype=np.uint8)
    (logits,) = outputs.values()
    if logits.shape[1] == 1:
        return np.asarray(logits[:, 0] > logits.dtype.type(boundary), dtype=np.uint8)
    labels = np.empty((len(logits), *logits.shape[2:]), np.uint8)
    # NumPy copies what it searches along another axis than the last: a strip instead of the whole map.
    for row in range(0, labels.shape[1], _STRIP_ROWS):
        labels[:, row : row + _STRIP_ROWS] = logits[:, :, row : row + _STRIP_ROWS].argmax(axis=1)
    return labels
