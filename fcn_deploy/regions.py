"""Split the indices of feature maps into those that depend on the image and two kinds of constants, with integers.

A convolution that pads far beyond the image makes maps of three parts, along each axis:

* live: indices that depend on the image;
* rim: the outermost indices, which later zero padding touches; constant for given weights, but each of its own value;
* moat: all others; one constant vector per map, the same everywhere.

Indices and sizes are in pixels of the map they belong to, both ends of a span included. docs/live-window.md has the
derivation. This module uses neither tensors nor graphs.
"""

from dataclasses import dataclass

from fcn_deploy.choices import Geometry
from fcn_deploy.geometry import CONV1_PADDING, CONVOLUTIONS, FC6_KERNEL


@dataclass(frozen=True, order=True)
class Span:
    """Indices `first` to `last` of one axis, both included; may reach beyond the map."""

    first: int
    last: int

    @property
    def size(self) -> int:
        """Number of indices; 0 or less when the span is empty."""
        return self.last - self.first + 1

    def __str__(self) -> str:
        return f"{self.first}..{self.last}"

    def contains(self, other: "Span") -> bool:
        """Return whether every index of `other` is in this span."""
        return self.first <= other.first and other.last <= self.last

    def hull(self, other: "Span") -> "Span":
        """Return the smallest span that contains both."""
        return Span(min(self.first, other.first), max(self.last, other.last))

    def common(self, other: "Span") -> "Span":
        """Return the indices in both; empty when there are none."""
        return Span(max(self.first, other.first), min(self.last, other.last))

    def since(self, first: int) -> "Span":
        """Return the same indices, counted from `first`."""
        return Span(self.first - first, self.last - first)


@dataclass(frozen=True)
class Region:
    """The three parts of one axis of one map."""

    size: int  # pixels
    live: Span  # indices that depend on the image
    rim: tuple[int, int] = (0, 0)  # number of indices that later padding touches, at the beginning and at the end

    @property
    def whole(self) -> Span:
        """Every index."""
        return Span(0, self.size - 1)

    @property
    def settled(self) -> Span:
        """Every index that is not rim: there the map equals that of an infinite frame."""
        return Span(self.rim[0], self.size - 1 - self.rim[1])


def image_region(size: int) -> Region:
    """Return the region of the image itself: everything is live."""
    return Region(size, Span(0, size - 1))


@dataclass(frozen=True)
class Sliding:
    """A convolution, a pool or a padding (kernel 1) along one axis.

    Output i reads inputs i * stride - begin to i * stride - begin + reach.
    """

    kernel: int  # taps
    stride: int = 1  # input pixels per output pixel
    begin: int = 0  # padding before the map
    end: int = 0  # padding behind it
    dilation: int = 1  # input pixels between two taps
    ceil: bool = False  # whether the last output may reach beyond the padded map
    # whether padding has the moat's own value: that of the image's frame, or nothing at all in a max pool
    neutral: bool = False

    @property
    def reach(self) -> int:
        """The distance from the first to the last input of an output."""
        return (self.kernel - 1) * self.dilation

    def read_by(self, outputs: Span) -> Span:
        """Return the inputs that `outputs` read."""
        return Span(outputs.first * self.stride - self.begin, outputs.last * self.stride - self.begin + self.reach)

    def computed_from(self, inputs: Span) -> Span:
        """Return the outputs that read only `inputs`."""
        first = -(-(inputs.first + self.begin) // self.stride)
        return Span(first, (inputs.last + self.begin - self.reach) // self.stride)

    def output_size(self, size: int) -> int:
        """Return the output size for a map of `size` (ONNX: a window that begins in the end padding is left out)."""
        room = size + self.begin + self.end - self.reach - 1
        if not self.ceil:
            return room // self.stride + 1
        count = -(-room // self.stride) + 1
        return count - 1 if (count - 1) * self.stride >= size + self.begin else count

    def region(self, given: Region) -> Region:
        """Return the region of the output."""
        size = self.output_size(given.size)
        touching = Span(
            -(-(given.live.first + self.begin - self.reach) // self.stride),
            (given.live.last + self.begin) // self.stride,
        )
        clear = self.computed_from(given.settled)
        begin = 0 if self.neutral and given.rim[0] == 0 else max(clear.first, 0)
        end = 0 if self.neutral and given.rim[1] == 0 else max(size - 1 - clear.last, 0)
        return Region(size, touching.common(Span(0, size - 1)), (begin, end))


def map_regions(image: int, geometry: Geometry, padding: int = CONV1_PADDING) -> dict[str, Region]:
    """Return the regions of an FCN's maps along one axis, from `conv1_1` to `fc6`, in order of execution.

    Args:
        image: pixels of the image along the axis.
        geometry: how pools round.
        padding: of conv1_1, at each side.
    """
    regions: dict[str, Region] = {}
    region = image_region(image)
    pool = Sliding(2, stride=2, ceil=geometry is Geometry.CAFFE, neutral=True)
    for block, count in enumerate(CONVOLUTIONS, start=1):
        for i in range(1, count + 1):
            first = (block, i) == (1, 1)
            pad = padding if first else 1
            region = regions[f"conv{block}_{i}"] = Sliding(3, begin=pad, end=pad, neutral=first).region(region)
        region = regions[f"pool{block}"] = pool.region(region)
    regions["fc6"] = Sliding(FC6_KERNEL).region(region)
    return regions
