"""Sizes and crops of every FCN map as pure integer arithmetic.

Both geometries share one architecture: a VGG16 trunk whose first convolution is padded by 100, `fc6` as a 7x7 valid
convolution, and transposed convolutions of kernel 2s and stride s. They differ in how a pool treats an odd size:
`floor` drops the last row and column, `caffe` keeps them (Caffe's ceil pooling, the geometry of the published weights:
Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015, and its Caffe nets).
Sizes and crops are in pixels of the map they belong to. This module does not use tensors.
"""

from dataclasses import dataclass

from fcn_deploy.choices import Geometry, Variant
from fcn_deploy.errors import SizeError

CONV1_PADDING = 100
# Convolutions of each block of VGG16's column D; a 2x2/2 max pool ends each block.
CONVOLUTIONS = (2, 2, 3, 3, 3)
FC6_KERNEL = 7


@dataclass(frozen=True)
class Upsampling:
    """One transposed convolution (kernel 2 * stride, no padding) and what its output is added to."""

    name: str  # the layer's Caffe name, also its parameter prefix
    stride: int  # output pixels per input pixel
    skip: str | None = None  # the pool whose scores are added after up-sampling, or None for the last one
    skip_crop: int = 0  # rows and columns dropped from the top and left of that pool's scores

    @property
    def kernel(self) -> int:
        """Kernel size in pixels, twice the stride."""
        return 2 * self.stride

    @property
    def score(self) -> str:
        """Name of the 1x1 convolution that scores the skip, e.g. `score_pool4`."""
        return f"score_{self.skip}"


# Skip crops follow from the coordinate rules of convolutions and pools (docs/geometry.md derives them): the pool4 grid
# leads the up-sampled one by 5 pixels, the pool3 grid by 9, in both geometries and at every size.
UPSAMPLINGS: dict[Variant, tuple[Upsampling, ...]] = {
    Variant.FCN32S: (Upsampling("upscore", 32),),
    Variant.FCN16S: (Upsampling("upscore2", 2, skip="pool4", skip_crop=5), Upsampling("upscore16", 16)),
    Variant.FCN8S: (
        Upsampling("upscore2", 2, skip="pool4", skip_crop=5),
        Upsampling("upscore_pool4", 2, skip="pool3", skip_crop=9),
        Upsampling("upscore8", 8),
    ),
}

# The true offset of 32s is 19. Floor networks are trained with 6, the centre crop at 500x500, and have learned the
# resulting shift; 6 therefore stays at every size.
FINAL_CROPS: dict[Geometry, dict[Variant, int]] = {
    Geometry.FLOOR: {Variant.FCN32S: 6, Variant.FCN16S: 27, Variant.FCN8S: 31},
    Geometry.CAFFE: {Variant.FCN32S: 19, Variant.FCN16S: 27, Variant.FCN8S: 31},
}

TRUE_OFFSETS: dict[Variant, int] = {Variant.FCN32S: 19, Variant.FCN16S: 27, Variant.FCN8S: 31}


def output_shift(variant: Variant, geometry: Geometry) -> int:
    """Return by how many pixels labels are shifted right and down from their object: 13 for floor 32s, else 0."""
    return TRUE_OFFSETS[variant] - FINAL_CROPS[geometry][variant]


def pooled(size: int, geometry: Geometry) -> int:
    """Return the size of one axis after a 2x2/2 max pool."""
    return size // 2 if geometry is Geometry.FLOOR else -(-size // 2)


@dataclass(frozen=True)
class AxisSizes:
    """Sizes along one axis, in pixels of each map.

    Attributes:
        image: the input.
        conv1: after conv1_1 (and conv1_2).
        pools: after pool1 ... pool5.
        score_fr: after fc6, fc7 and score_fr; below 1 when the image is too small.
        upsampled: after each transposed convolution in turn, before its crop.
    """

    image: int
    conv1: int
    pools: tuple[int, ...]
    score_fr: int
    upsampled: tuple[int, ...]

    @property
    def full(self) -> int:
        """Size of the last up-sampled map, which the final crop cuts to the image."""
        return self.upsampled[-1]

    def pool(self, name: str) -> int:
        """Return the size after the pool called `name`, `pool1` ... `pool5`."""
        return self.pools[int(name.removeprefix("pool")) - 1]


def axis_sizes(image: int, variant: Variant, geometry: Geometry) -> AxisSizes:
    """Return the size of every map along one axis of `image` pixels, whether or not the image fits."""
    conv1 = image + 2 * CONV1_PADDING - 2
    pools: list[int] = []
    for _ in CONVOLUTIONS:
        pools.append(pooled(pools[-1] if pools else conv1, geometry))
    score_fr = pools[-1] - FC6_KERNEL + 1
    upsampled: list[int] = []
    for up in UPSAMPLINGS[variant]:
        upsampled.append(up.stride * ((upsampled[-1] if upsampled else score_fr) - 1) + up.kernel)
    return AxisSizes(image, conv1, tuple(pools), score_fr, tuple(upsampled))


def axis_fits(image: int, variant: Variant, geometry: Geometry) -> bool:
    """Return whether an axis of `image` pixels yields `image` output pixels, with every crop inside its map."""
    if image < 1:
        return False
    sizes = axis_sizes(image, variant, geometry)
    if sizes.score_fr < 1 or FINAL_CROPS[geometry][variant] + image > sizes.full:
        return False
    skips = [(up, size) for up, size in zip(UPSAMPLINGS[variant], sizes.upsampled, strict=True) if up.skip]
    return all(up.skip_crop + size <= sizes.pool(str(up.skip)) for up, size in skips)


def nearest_fitting(image: int, variant: Variant, geometry: Geometry) -> tuple[int, ...]:
    """Return the nearest sizes below and above `image` that fit, in that order; the lower one may not exist."""
    below = next((n for n in range(image - 1, 0, -1) if axis_fits(n, variant, geometry)), None)
    above = next(n for n in range(max(image, 0) + 1, max(image, 0) + 300) if axis_fits(n, variant, geometry))
    return (above,) if below is None else (below, above)


def check_fits(height: int, width: int, variant: Variant, geometry: Geometry) -> None:
    """Refuse an image size whose label map would not have the image's size.

    PyTorch's slicing raises no error: without this check floor 16s returns 500x373 for a 500x375 image.

    Raises:
        SizeError: names the axis, the sizes nearby that fit, and the other geometry when that one fits.
    """
    for axis, size in (("height", height), ("width", width)):
        if not axis_fits(size, variant, geometry):
            raise SizeError(_misfit(axis, size, variant, geometry), remedy=_ways_out(axis, size, variant, geometry))


def _misfit(axis: str, size: int, variant: Variant, geometry: Geometry) -> str:
    start = f"{axis} {size} does not fit FCN-{variant} in {geometry} geometry"
    sizes = axis_sizes(size, variant, geometry)
    if size < 1 or sizes.score_fr < 1:
        return (
            f"{start}: fc6 needs at least {FC6_KERNEL} pixels after pool5, this image leaves {max(sizes.pools[-1], 0)}"
        )
    crop = FINAL_CROPS[geometry][variant]
    return f"{start}: {sizes.full} up-sampled pixels less a crop of {crop} leave {sizes.full - crop} of {size}"


def _ways_out(axis: str, size: int, variant: Variant, geometry: Geometry) -> str:
    near = " or ".join(str(n) for n in nearest_fitting(size, variant, geometry))
    other = Geometry.CAFFE if geometry is Geometry.FLOOR else Geometry.FLOOR
    other_way = f", or --geometry {other}, which fits {size}" if axis_fits(size, variant, other) else ""
    return f"Use {axis} {near} (--size HxW){other_way}."
