"""From uint8 pixels to labels with a runtime that knows only float32 inputs and logits: the host does the rest."""

from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.cases import LABELS_NAME, PIXELS_NAME
from fcn_deploy.images import Labels, Pixels, preprocess
from fcn_deploy.model_info import INPUT_NAME, OUTPUT_NAME
from fcn_deploy.runtime.base import Arrays, Bound


class HostEndToEnd(Bound):
    """Another binding with pre-processing before it and the choice of the largest logit behind it, both by NumPy."""

    def __init__(self, inner: Bound) -> None:
        self._inner = inner
        self._pixels: Pixels = np.empty(0, np.uint8)
        self._labels: Labels = np.empty(0, np.uint8)

    def upload(self, feeds: Arrays) -> None:
        """Keep the N x H x W x 3 uint8 RGB pixels: everything else is part of the run."""
        self._pixels = feeds[PIXELS_NAME]

    def launch(self) -> None:
        """Pre-process, move, compute, move back, take the largest logit: N x H x W uint8."""
        self._inner.upload({INPUT_NAME: preprocess(self._pixels)})
        self._inner.run()
        self._labels = self._inner.download()[OUTPUT_NAME].argmax(axis=1).astype(np.uint8)

    def wait(self) -> None:
        """Nothing is left to do when a launch returns."""

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """The labels, which are on the host already."""
        return {LABELS_NAME: self._labels}
