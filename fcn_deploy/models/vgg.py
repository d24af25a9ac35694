"""The VGG16 trunk of every FCN as a table read by one loop.

Source: Simonyan and Zisserman, "Very Deep Convolutional Networks for Large-Scale Image Recognition", 2014, column D;
fully connected layers as convolutions after Long et al., CVPR 2015. Layer names are Caffe's.
"""

from collections.abc import Iterator

from torch import nn

from fcn_deploy.choices import Geometry
from fcn_deploy.geometry import CONV1_PADDING, CONVOLUTIONS, FC6_KERNEL

INPUT_CHANNELS = 3
FC_CHANNELS = 4096
DROPOUT = 0.5

# One row per block: output channels of its convolutions, and how many there are before its pool.
BLOCKS = tuple(zip((64, 128, 256, 512, 512), CONVOLUTIONS, strict=True))
POOL_CHANNELS = {f"pool{block}": channels for block, (channels, _) in enumerate(BLOCKS, start=1)}

NamedLayers = Iterator[tuple[str, nn.Module]]


def narrowed(channels: int, divisor: int) -> int:
    """Return the channel count of a network narrowed by `divisor`, at least 1."""
    return max(channels // divisor, 1)


def trunk_layers(geometry: Geometry, channel_divisor: int) -> NamedLayers:
    """Yield (name, layer) from conv1_1 to pool5, in order of execution.

    Maps N x 3 x H x W to N x 512/divisor x pool5; sizes as in `fcn_deploy.geometry.axis_sizes`.
    """
    in_channels = INPUT_CHANNELS
    for block, (channels, convolutions) in enumerate(BLOCKS, start=1):
        out_channels = narrowed(channels, channel_divisor)
        for i in range(1, convolutions + 1):
            padding = CONV1_PADDING if (block, i) == (1, 1) else 1
            yield f"conv{block}_{i}", nn.Conv2d(in_channels, out_channels, kernel_size=3, padding=padding)
            yield f"relu{block}_{i}", nn.ReLU()
            in_channels = out_channels
        yield f"pool{block}", nn.MaxPool2d(kernel_size=2, stride=2, ceil_mode=geometry is Geometry.CAFFE)


def classifier_layers(channel_divisor: int) -> NamedLayers:
    """Yield (name, layer) from fc6 to drop7: VGG's fully connected layers as convolutions."""
    in_channels, width = narrowed(BLOCKS[-1][0], channel_divisor), narrowed(FC_CHANNELS, channel_divisor)
    for index, (channels, kernel) in ((6, (in_channels, FC6_KERNEL)), (7, (width, 1))):
        yield f"fc{index}", nn.Conv2d(channels, width, kernel_size=kernel)
        yield f"relu{index}", nn.ReLU()
        yield f"drop{index}", nn.Dropout(DROPOUT)
