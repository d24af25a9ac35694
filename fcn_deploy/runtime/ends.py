"""From pixels to what a model takes, and from what it gives to labels, whichever ends the model has."""

from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_deploy.images import Labels, Pixels, preprocess
from fcn_deploy.model_info import LABELS_NAME
from fcn_deploy.runtime.base import Arrays, TensorSpec


def feed_of(spec: TensorSpec, pixels: Pixels) -> dict[str, npt.NDArray[Any]]:
    """N x H x W x 3 uint8 RGB pixels as the input `spec` takes them: as they are, or pre-processed."""
    return {spec.name: pixels if spec.dtype == "uint8" else preprocess(pixels).astype(spec.dtype, copy=False)}


def labels_of(outputs: Arrays) -> Labels:
    """N x H x W uint8 labels of a model's only output: labels as they are, or the class of the largest logit."""
    if LABELS_NAME in outputs:
        return np.asarray(outputs[LABELS_NAME], dtype=np.uint8)
    (logits,) = outputs.values()
    return np.asarray(logits.argmax(axis=1), dtype=np.uint8)
