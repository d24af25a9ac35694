"""What the network of the narrow bundles says of a photo, by other means than the toolkit's own image code."""

from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image

import fcn_deploy as fd
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.weights import random_network
from tests.conftest import NARROW


def expected_labels(photo: Path | np.ndarray, size: int) -> np.ndarray:
    """PyTorch's labels of a file or of h x w x 3 RGB pixels, by a network of size x size inputs."""
    image = Image.fromarray(photo) if isinstance(photo, np.ndarray) else Image.open(photo)
    with image:
        pixels = np.asarray(image.convert("RGB").resize((size, size), Image.Resampling.BILINEAR), dtype=np.float64)
        original = image.size
    bgr = pixels[:, :, ::-1] - [104.00698793, 116.66876762, 122.67891434]
    with torch.inference_mode():
        logits = _network()(torch.from_numpy(bgr.transpose(2, 0, 1)[None].astype(np.float32)))
    labels = logits.argmax(1)[0].numpy().astype(np.uint8)
    return np.asarray(Image.fromarray(labels).resize(original, Image.Resampling.NEAREST))


@cache
def _network() -> FCN:
    return random_network(fd.NetworkSpec(fd.Variant.FCN8S, channel_divisor=NARROW), 0)
