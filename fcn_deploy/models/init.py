"""Deterministic random weights: for tests, demonstrations, and layers that a starting point does not bring.

He-normal weights (He et al., "Delving Deep into Rectifiers", 2015), biases that are not zero, and up-sampling that is
bilinear plus noise. Zero biases would make the padded frame all zeros, and a wrong crop or pad invisible.
"""

import math

import torch
from torch import Tensor, nn

from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.fcn import FCN, empty_network

BIAS_STD = 1.0
UPSAMPLING_NOISE_STD = 0.02


def bilinear_kernel(size: int) -> Tensor:
    """Bilinear up-sampling kernel for stride size/2, float32, size x size (Long et al., surgery.py's rule)."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    ramp = 1 - (torch.arange(size, dtype=torch.float32) - centre).abs() / factor
    return ramp[:, None] * ramp[None, :]


def random_network(spec: NetworkSpec, rng_seed: int) -> FCN:
    """An untrained network in eval mode; equal arguments give equal weights, bit for bit, on one PyTorch version."""
    network = empty_network(spec)
    randomise(network, rng_seed)
    return network


@torch.no_grad()
def randomise(network: nn.Module, rng_seed: int) -> None:
    """Fill every convolution of `network` in place with random weights from `rng_seed`."""
    generator = torch.Generator().manual_seed(rng_seed)
    for layer in network.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            _fill_upsampling(layer.weight, generator)
        elif isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            if layer.bias is not None:
                layer.bias.normal_(0, BIAS_STD, generator=generator)


def _fill_upsampling(weight: Tensor, generator: torch.Generator) -> None:
    kernel = bilinear_kernel(weight.shape[-1])
    weight.normal_(0, UPSAMPLING_NOISE_STD / weight.shape[0], generator=generator)
    weight.diagonal().add_(kernel[..., None])
