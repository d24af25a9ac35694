"""From uint8 pixels to labels: what the model does not do itself, the host does."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_deploy.images import Labels, Pixels
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME
from fcn_deploy.runtime.base import Arrays, Bound, TensorSpec
from fcn_deploy.runtime.ends import feed_of, labels_of


class HostEndToEnd(Bound):
    """Another binding with NumPy's pre-processing before it, and its choice of the largest logit behind it.

    Either is left out where the model takes pixels, or gives labels.
    """

    def __init__(self, inner: Bound, spec: TensorSpec) -> None:
        self._inner, self._spec = inner, spec
        self._pixels: Pixels = np.empty(0, np.uint8)
        self._labels: Labels = np.empty(0, np.uint8)

    def upload(self, feeds: Arrays) -> None:
        """Keep the N x H x W x 3 uint8 RGB pixels: everything else is part of the run."""
        self._pixels = feeds[PIXELS_NAME]

    def launch(self) -> None:
        """Pre-process, move, compute, move back, take the largest logit: N x H x W uint8."""
        self._inner.upload(feed_of(self._spec, self._pixels))
        self._inner.run()
        self._labels = labels_of(self._inner.download())

    def wait(self) -> None:
        """Nothing is left to do when a launch returns."""

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """The labels, which are on the host already."""
        return {LABELS_NAME: self._labels}
