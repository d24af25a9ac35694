"""FCN-32s, FCN-16s and FCN-8s: one class, wired by the tables of `fcn_deploy.geometry`.

Source: Long, Shelhamer and Darrell, "Fully Convolutional Networks for Semantic Segmentation", CVPR 2015.
Shape letters: N batch, K classes, H and W image height and width.
"""

import torch
from torch import Tensor, nn

from fcn_deploy.choices import Geometry, Variant
from fcn_deploy.geometry import FINAL_CROPS, UPSAMPLINGS, Upsampling, check_fits
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.vgg import FC_CHANNELS, POOL_CHANNELS, NamedLayers, classifier_layers, narrowed, trunk_layers


class Crop(nn.Module):
    """Cut a window out of a map: `map[..., offset:offset+H, offset:offset+W]`, H x W those of `like`."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.offset = offset

    def forward(self, full: Tensor, like: Tensor) -> Tensor:
        """Return the window of `full` with the H x W of `like`."""
        height, width = like.shape[-2:]
        return full[..., self.offset : self.offset + height, self.offset : self.offset + width]


class Fuse(nn.Module):
    """Add a skip's scores, cropped to the map's size, to the up-sampled map."""

    def __init__(self, offset: int) -> None:
        super().__init__()
        self.crop = Crop(offset)

    def forward(self, upsampled: Tensor, scores: Tensor) -> Tensor:
        """Return `upsampled` plus the window of `scores` at the same place."""
        cropped: Tensor = self.crop(scores, like=upsampled)
        return upsampled + cropped


class FCN(nn.Module):
    """A fully convolutional network on VGG16.

    `forward` maps N x 3 x H x W float images (BGR, mean subtracted, see `fcn_deploy.images`) to contiguous
    N x K x H x W float logits. Parameter names are Caffe's: conv1_1 ... fc7, score_fr, upscore, ...

    Raises:
        SizeError: from `forward`, when H or W does not fit the geometry.
    """

    def __init__(self, spec: NetworkSpec) -> None:
        super().__init__()
        self.spec = spec
        self.trunk = self._add(trunk_layers(spec.geometry, spec.channel_divisor))
        self.classifier = self._add(classifier_layers(spec.channel_divisor))
        self.skips = {up.skip for up in UPSAMPLINGS[spec.variant] if up.skip}
        self.score_fr = nn.Conv2d(narrowed(FC_CHANNELS, spec.channel_divisor), spec.num_classes, kernel_size=1)
        for upsampling in UPSAMPLINGS[spec.variant]:
            self._add_upsampling(upsampling)
        self.score = Crop(FINAL_CROPS[spec.geometry][spec.variant])

    def _add(self, layers: NamedLayers) -> tuple[str, ...]:
        names = []
        for name, layer in layers:
            self.add_module(name, layer)
            names.append(name)
        return tuple(names)

    def _add_upsampling(self, up: Upsampling) -> None:
        classes, spec = self.spec.num_classes, self.spec
        deconvolution = nn.ConvTranspose2d(classes, classes, kernel_size=up.kernel, stride=up.stride, bias=False)
        self.add_module(up.name, deconvolution)
        if up.skip:
            channels = narrowed(POOL_CHANNELS[up.skip], spec.channel_divisor)
            self.add_module(up.score, nn.Conv2d(channels, classes, kernel_size=1, bias=has_score_bias(spec, up)))
            self.add_module(f"fuse_{up.skip}", Fuse(up.skip_crop))

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        check_fits(image.shape[-2], image.shape[-1], self.spec.variant, self.spec.geometry)
        x, pools = image, {}
        for name in self.trunk:
            x = self.get_submodule(name)(x)
            if name in self.skips:
                pools[name] = x
        for name in self.classifier:
            x = self.get_submodule(name)(x)
        x = self.score_fr(x)
        for up in UPSAMPLINGS[self.spec.variant]:
            x = self.get_submodule(up.name)(x)
            if up.skip:
                scores = self.get_submodule(up.score)(pools[up.skip])
                x = self.get_submodule(f"fuse_{up.skip}")(x, scores)
        logits: Tensor = self.score(x, like=image)
        return logits.contiguous()


def has_score_bias(spec: NetworkSpec, up: Upsampling) -> bool:
    """Return whether a skip's 1x1 scores have a bias: all do except `score_pool4` of the floor FCN-16s."""
    return (spec.geometry, spec.variant, up.skip) != (Geometry.FLOOR, Variant.FCN16S, "pool4")


def empty_network(spec: NetworkSpec) -> FCN:
    """Return the network in eval mode, with uninitialised float32 parameters on the CPU."""
    with torch.device("meta"):
        network = FCN(spec)
    network.to_empty(device="cpu")
    return network.eval()


def fcn32s(*, num_classes: int = 21, geometry: Geometry = Geometry.FLOOR, channel_divisor: int = 1) -> FCN:
    """Build FCN-32s: scores of fc7 up-sampled 32 times at once. Parameters are PyTorch's default initialisation."""
    return FCN(NetworkSpec(Variant.FCN32S, geometry, num_classes, channel_divisor))


def fcn16s(*, num_classes: int = 21, geometry: Geometry = Geometry.FLOOR, channel_divisor: int = 1) -> FCN:
    """Build FCN-16s: FCN-32s with scores of pool4 added at stride 16."""
    return FCN(NetworkSpec(Variant.FCN16S, geometry, num_classes, channel_divisor))


def fcn8s(*, num_classes: int = 21, geometry: Geometry = Geometry.FLOOR, channel_divisor: int = 1) -> FCN:
    """Build FCN-8s: FCN-16s with scores of pool3 added at stride 8."""
    return FCN(NetworkSpec(Variant.FCN8S, geometry, num_classes, channel_divisor))
