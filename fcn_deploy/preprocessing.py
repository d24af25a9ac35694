"""From pixels to a network's input, as data: order of channels, scale, mean and standard deviation.

Everything that reads pictures for a network goes through here; the graphs that take pixels hold the same operations.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from fcn_deploy.choices import ChannelOrder, Preset
from fcn_deploy.errors import UsageError

Triple = tuple[float, float, float]

# Mean of ImageNet's training images per channel: B, G, R, 0..255 (Long et al.'s voc_layers.py; VGG's published means).
MEAN_BGR: Triple = (104.00698793, 116.66876762, 122.67891434)
LARGEST_PIXEL = 255
_LARGEST_INPUT = 1e9


@dataclass(frozen=True)
class Preprocessing:
    """How pixels become a network's input: `(pixel * scale - mean) / std`, per channel.

    The operations are float32's, in this order, so that a graph can repeat them to the bit. Padding within the network
    comes after them: it stands for `mean`. The defaults are those of the published FCNs (Long et al., in Caffe).

    Attributes:
        channel_order: of the network's input; pictures are RGB.
        scale: factor of the pixels, which are 0..255.
        mean: is subtracted, one value a channel in `channel_order`, in units of the scaled pixels.
        std: divides what is left, in the same order.

    Raises:
        UsageError: a value is not finite, or `scale` or `std` is not above 0.
    """

    channel_order: ChannelOrder = ChannelOrder.BGR
    scale: float = 1.0
    mean: Triple = MEAN_BGR
    std: Triple = (1.0, 1.0, 1.0)

    def __post_init__(self) -> None:
        _check_values("scale", (self.scale,), above=0.0)
        _check_values("mean", self.mean, above=-math.inf)
        _check_values("std", self.std, above=0.0)
        if not all(abs(bound) <= _LARGEST_INPUT for bound in self.bounds):
            raise UsageError(
                f"pixels would become {self.bounds[0]:g} to {self.bounds[1]:g}, beyond {_LARGEST_INPUT:g}",
                remedy="Check --scale, --mean and --std.",
            )

    def __str__(self) -> str:
        preset = next((name for name, one in PRESETS.items() if one == self), None)
        parts = [str(self.channel_order).upper()]
        parts += [f"times {self.scale:.6g}"] if self.scale != 1 else []
        parts += [f"less {_listed(self.mean)}"] if any(self.mean) else []
        parts += [f"over {_listed(self.std)}"] if set(self.std) != {1.0} else []
        return f"{', '.join(parts)}{f' ({preset})' if preset else ''}"

    @property
    def bounds(self) -> tuple[float, float]:
        """The smallest and the largest value that a pixel of any channel can become."""
        lows, highs = (
            [(pixel * self.scale - mean) / std for mean, std in zip(self.mean, self.std, strict=True)]
            for pixel in (0, LARGEST_PIXEL)
        )
        return min(lows), max(highs)

    def with_order(self, order: ChannelOrder) -> "Preprocessing":
        """Return the same values per colour for a network with another order of channels."""
        if order is self.channel_order:
            return self
        return replace(self, channel_order=order, mean=self.mean[::-1], std=self.std[::-1])

    def in_rgb(self, values: Triple) -> Triple:
        """Return one value a channel in the order of pictures."""
        return values if self.channel_order is ChannelOrder.RGB else values[::-1]

    def apply(self, images: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
        """Turn N x H x W x 3 uint8 RGB into the network's N x 3 x H x W float32."""
        step = 1 if self.channel_order is ChannelOrder.RGB else -1
        found = images[..., ::step].astype(np.float32)
        if self.scale != 1:
            found *= np.float32(self.scale)
        found -= np.array(self.mean, dtype=np.float32)
        if set(self.std) != {1.0}:
            found /= np.array(self.std, dtype=np.float32)
        return np.ascontiguousarray(found.transpose(0, 3, 1, 2))

    def mean_image(self, height: int, width: int) -> npt.NDArray[np.uint8]:
        """Return the mean colour, which becomes about 0, as an H x W x 3 uint8 RGB image."""
        colour = np.array(self.in_rgb(self.mean)) / self.scale
        rgb = np.rint(np.clip(colour, 0, LARGEST_PIXEL)).astype(np.uint8)
        return np.broadcast_to(rgb, (height, width, 3)).copy()


def _check_values(name: str, values: tuple[float, ...], above: float) -> None:
    for value in values:
        with np.errstate(over="ignore", under="ignore"):
            rounded = float(np.float32(value))  # tiny ones are 0, and huge ones infinite
        if not math.isfinite(rounded) or not rounded > above:
            bound = f", above {above:g}" if math.isfinite(above) else ""
            raise UsageError(
                f"{name} {value:g} is not a finite float32 number{bound}", remedy=f"Pass another --{name}."
            )


def _listed(values: Triple) -> str:
    same = len(set(values)) == 1
    return f"{values[0]:.6g}" if same else " ".join(f"{value:.6g}" for value in values)


# Sources: Long et al.'s voc_layers.py; torchvision's transforms for weights trained on ImageNet; pixels as 0..1.
PRESETS: Mapping[Preset, Preprocessing] = {
    Preset.CAFFE: Preprocessing(),
    Preset.IMAGENET: Preprocessing(ChannelOrder.RGB, 1 / 255, (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    Preset.UNIT: Preprocessing(ChannelOrder.RGB, 1 / 255, (0.0, 0.0, 0.0)),
}
