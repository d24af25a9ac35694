"""A second implementation of the six FCNs, written from the published description alone; shares no code with `models/`.

It computes everything another way round: padding as explicit zeros, a convolution as a sum over its taps, ceil pooling
as zero-padding followed by floor pooling, a transposed convolution as kernels stamped onto the output, crops as written
in the published tables.
"""

from collections.abc import Mapping

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_SIZES = (2, 2, 3, 3, 3)


def run(state: Mapping[str, Tensor], image: Tensor, variant: str, geometry: str) -> Tensor:
    """Logits of `image` with the weights in `state` (Caffe names), in the dtype of both."""
    pools: list[Tensor] = []
    x = image
    for block, convolutions in enumerate(BLOCK_SIZES, start=1):
        for i in range(1, convolutions + 1):
            x = relu(convolve(x, state, f"conv{block}_{i}", pad=100 if (block, i) == (1, 1) else 1))
        x = pool(x, ceil=geometry == "caffe")
        pools.append(x)
    x = relu(convolve(x, state, "fc6", pad=0))
    x = relu(convolve(x, state, "fc7", pad=0))
    x = convolve(x, state, "score_fr", pad=0)
    if variant == "32s":
        return window(deconvolve(x, state["upscore.weight"], 32), 6 if geometry == "floor" else 19, image)
    x = deconvolve(x, state["upscore2.weight"], 2)
    x = x + window(convolve(pools[3], state, "score_pool4", pad=0), 5, x)
    if variant == "16s":
        return window(deconvolve(x, state["upscore16.weight"], 16), 27, image)
    x = deconvolve(x, state["upscore_pool4.weight"], 2)
    x = x + window(convolve(pools[2], state, "score_pool3", pad=0), 9, x)
    return window(deconvolve(x, state["upscore8.weight"], 8), 31, image)


def convolve(x: Tensor, state: Mapping[str, Tensor], name: str, pad: int) -> Tensor:
    weight, bias = state[f"{name}.weight"], state.get(f"{name}.bias")
    y = torch.zeros(*x.shape[:2], x.shape[2] + 2 * pad, x.shape[3] + 2 * pad, dtype=x.dtype)
    y[:, :, pad : pad + x.shape[2], pad : pad + x.shape[3]] = x
    kernel = weight.shape[-1]
    height, width = y.shape[2] - kernel + 1, y.shape[3] - kernel + 1
    total = torch.zeros(x.shape[0], weight.shape[0], height, width, dtype=x.dtype)
    for row in range(kernel):
        for column in range(kernel):
            tap = y[:, :, row : row + height, column : column + width]
            total += torch.einsum("oc,nchw->nohw", weight[:, :, row, column], tap)
    return total if bias is None else total + bias[None, :, None, None]


def relu(x: Tensor) -> Tensor:
    return torch.where(x > 0, x, torch.zeros_like(x))


def pool(x: Tensor, *, ceil: bool) -> Tensor:
    """After a ReLU, a zero row and column at the end of an odd map turn floor pooling into ceil pooling."""
    height, width = x.shape[2:]
    if ceil:
        x = F.pad(x, (0, width % 2, 0, height % 2))
    rows, columns = x.shape[2] // 2, x.shape[3] // 2
    return x[:, :, : 2 * rows, : 2 * columns].reshape(*x.shape[:2], rows, 2, columns, 2).amax(dim=(3, 5))


def deconvolve(x: Tensor, weight: Tensor, stride: int) -> Tensor:
    """Every input pixel stamps the kernel onto the output, `stride` pixels apart."""
    kernel, (height, width) = weight.shape[-1], x.shape[2:]
    size = stride * (height - 1) + kernel, stride * (width - 1) + kernel
    total = torch.zeros(x.shape[0], weight.shape[1], *size, dtype=x.dtype)
    for row in range(kernel):
        for column in range(kernel):
            stamped = torch.einsum("co,nchw->nohw", weight[:, :, row, column], x)
            total[:, :, row : row + stride * height : stride, column : column + stride * width : stride][
                :, :, :height, :width
            ] += stamped
    return total


def window(full: Tensor, offset: int, like: Tensor) -> Tensor:
    cut = full[:, :, offset : offset + like.shape[2], offset : offset + like.shape[3]]
    assert cut.shape[2:] == like.shape[2:], "the reference itself cut outside the map"
    return cut


def relative_error(expected: np.ndarray, actual: np.ndarray) -> float:
    """Largest absolute error over the range of `expected`."""
    return float(np.abs(expected - actual).max() / (expected.max() - expected.min()))
