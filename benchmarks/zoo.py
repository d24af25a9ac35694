"""Networks to try exports on: five kinds of segmentation network as people write them, and two from other packages.

Each takes N x 3 x H x W images and gives N x K x H x W logits. `width` is the number of channels of the first stage.
Biases and running statistics are random, too: with zeros, errors at borders and in folded layers would be invisible.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_VGG = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))
_FC_WIDTH = 64


def randomise(network: nn.Module) -> None:
    """Fill weights, biases and the statistics of batch normalisations, from PyTorch's generator.

    Weights are as large as keeps the range of maps through layers with ReLU (He et al., 2015).
    """
    with torch.no_grad():
        for layer in network.modules():
            if isinstance(layer, nn.Conv2d):
                layer.weight.normal_(0, math.sqrt(2 / layer.weight[0].numel()))
            if isinstance(layer, nn.Conv2d | nn.ConvTranspose2d) and layer.bias is not None:
                layer.bias.normal_(0, 0.3)
            elif isinstance(layer, nn.BatchNorm2d):
                layer.weight.uniform_(0.5, 1.5)
                layer.bias.normal_(0, 0.2)
                for statistic in (layer.running_mean, layer.running_var):
                    if statistic is not None:
                        statistic.uniform_(0.5, 1.5)


class PaddedFCN8s(nn.Module):
    """FCN-8s on VGG16 that pads fc6 and the image by less than 100, with crops computed from the sizes of the maps."""

    def __init__(self, num_classes: int = 5, padding: int = 60, width: int = 64) -> None:
        super().__init__()
        self.stages = nn.ModuleList()
        channels = 3
        for stage, (factor, count) in enumerate(_VGG):
            layers: list[nn.Module] = []
            for i in range(count):
                pad = padding if (stage, i) == (0, 0) else 1
                layers += [nn.Conv2d(channels, factor * width, 3, padding=pad), nn.ReLU(inplace=True)]
                channels = factor * width
            self.stages.append(nn.Sequential(*layers, nn.MaxPool2d(2, stride=2)))
        self.classifier = nn.Sequential(
            nn.Conv2d(channels, _FC_WIDTH * width, 7, padding=3), nn.ReLU(inplace=True), nn.Dropout2d(),
            nn.Conv2d(_FC_WIDTH * width, _FC_WIDTH * width, 1), nn.ReLU(inplace=True), nn.Dropout2d(),
            nn.Conv2d(_FC_WIDTH * width, num_classes, 1),
        )  # fmt: skip
        self.score_pool3 = nn.Conv2d(4 * width, num_classes, 1)
        self.score_pool4 = nn.Conv2d(8 * width, num_classes, 1)
        self.up2 = nn.ConvTranspose2d(num_classes, num_classes, 4, stride=2, bias=False)
        self.up4 = nn.ConvTranspose2d(num_classes, num_classes, 4, stride=2, bias=False)
        self.up8 = nn.ConvTranspose2d(num_classes, num_classes, 16, stride=8, bias=False)
        randomise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x, pools = image, []
        for stage in self.stages:
            x = stage(x)
            pools.append(x)
        skip4, skip3 = self.score_pool4(pools[3]), self.score_pool3(pools[2])
        x = centre(self.up2(self.classifier(x)), skip4) + skip4
        x = centre(self.up4(x), skip3) + skip3
        return centre(self.up8(x), image).contiguous()


def centre(full: Tensor, like: Tensor) -> Tensor:
    """Cut the centre of a map to the size of another."""
    top, left = ((full.shape[axis] - like.shape[axis]) // 2 for axis in (2, 3))
    return full[:, :, top : top + like.shape[2], left : left + like.shape[3]]


def convolution(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Sequential:
    """Return a convolution that keeps the size, up to its stride, with batch normalisation and ReLU."""
    padding = dilation * (kernel // 2)
    layer = nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding, dilation=dilation, bias=False)
    return nn.Sequential(layer, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class UNet(nn.Module):
    """U-Net (Ronneberger et al., 2015) with batch normalisation; sizes are multiples of 16."""

    def __init__(self, num_classes: int = 5, width: int = 32, bilinear: bool = False) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(5)]
        self.down = nn.ModuleList(_twice(i, o) for i, o in zip([3, *widths[:-1]], widths, strict=True))
        self.up, self.merge = nn.ModuleList(), nn.ModuleList()
        for small, large in zip(widths[-2::-1], widths[:0:-1], strict=True):
            resize = nn.Upsample(scale_factor=2, mode="bilinear", align_corners=True)
            narrow = nn.Sequential(resize, nn.Conv2d(large, small, 1))
            self.up.append(narrow if bilinear else nn.ConvTranspose2d(large, small, 2, stride=2))
            self.merge.append(_twice(2 * small, small))
        self.head = nn.Conv2d(width, num_classes, 1)
        randomise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x, skips = image, []
        for level, block in enumerate(self.down):
            x = block(functional.max_pool2d(x, 2) if level else x)
            skips.append(x)
        for up, merge, skip in zip(self.up, self.merge, skips[-2::-1], strict=True):
            x = merge(torch.cat([skip, up(x)], dim=1))
        logits: Tensor = self.head(x)
        return logits


def _twice(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(convolution(inputs, outputs), convolution(outputs, outputs))


class Bottleneck(nn.Module):
    """A residual block of ResNet-50 (He et al., 2016)."""

    def __init__(self, inputs: int, width: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        outputs = 4 * width
        self.conv1, self.conv2 = convolution(inputs, width, 1), convolution(width, width, 3, stride, dilation)
        self.conv3, self.bn3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(
                nn.Conv2d(inputs, outputs, 1, stride=stride, bias=False), nn.BatchNorm2d(outputs)
            )

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map."""
        return functional.relu(self.shortcut(x) + self.bn3(self.conv3(self.conv2(self.conv1(x)))))


class DilatedResNet(nn.Module):
    """ResNet-50's trunk with an output stride of 8, as in torchvision's segmentation networks."""

    def __init__(self, width: int, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.stem = nn.Sequential(convolution(3, width, 7, stride=2), nn.MaxPool2d(3, stride=2, padding=1))
        inputs, stages = width, []
        for stage, count in enumerate(blocks):
            stride, dilation = (2, 1) if stage == 1 else (1, (1, 1, 2, 4)[stage])
            for block in range(count):
                stages.append(Bottleneck(inputs, width * 2**stage, stride if block == 0 else 1, dilation))
                inputs = 4 * width * 2**stage
        self.stages, self.channels = nn.Sequential(*stages), inputs

    def forward(self, image: Tensor) -> Tensor:
        """Return the map of the last stage."""
        found: Tensor = self.stages(self.stem(image))
        return found


class ResNetFCN(nn.Module):
    """The form of torchvision's fcn_resnet50: a dilated ResNet, a small head, and a dictionary as output."""

    def __init__(self, num_classes: int = 21, width: int = 64, blocks: tuple[int, ...] = (3, 4, 6, 3)) -> None:
        super().__init__()
        self.backbone = DilatedResNet(width, tuple(blocks))
        channels = self.backbone.channels
        self.classifier = nn.Sequential(
            convolution(channels, channels // 4), nn.Dropout(0.1), nn.Conv2d(channels // 4, num_classes, 1)
        )
        randomise(self)

    def forward(self, image: Tensor) -> dict[str, Tensor]:
        """Return the logits under `out`."""
        logits = self.classifier(self.backbone(image))
        return {"out": functional.interpolate(logits, size=image.shape[-2:], mode="bilinear", align_corners=False)}


class DeepLab(nn.Module):
    """DeepLabv3 (Chen et al., 2017): a dilated ResNet, and parallel dilated convolutions beside a global pool."""

    def __init__(
        self,
        num_classes: int = 21,
        width: int = 64,
        blocks: tuple[int, ...] = (3, 4, 6, 3),
        rates: tuple[int, ...] = (12, 24, 36),
    ) -> None:
        super().__init__()
        self.backbone = DilatedResNet(width, tuple(blocks))
        channels, inner = self.backbone.channels, 4 * width
        self.branches = nn.ModuleList([convolution(channels, inner, 1)])
        self.branches.extend(convolution(channels, inner, 3, dilation=rate) for rate in rates)
        self.pool = nn.Sequential(nn.AdaptiveAvgPool2d(1), convolution(channels, inner, 1))
        self.project = nn.Sequential(convolution(inner * (len(rates) + 2), inner, 1), nn.Dropout(0.5))
        self.head = nn.Sequential(convolution(inner, inner), nn.Conv2d(inner, num_classes, 1))
        randomise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        x = self.backbone(image)
        pooled = functional.interpolate(self.pool(x), size=x.shape[-2:], mode="bilinear", align_corners=False)
        x = self.project(torch.cat([*(branch(x) for branch in self.branches), pooled], dim=1))
        return functional.interpolate(self.head(x), size=image.shape[-2:], mode="bilinear", align_corners=False)


class Separable(nn.Module):
    """An inverted residual of MobileNetV3 (Howard et al., 2019) without squeeze and excitation."""

    def __init__(self, inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> None:
        super().__init__()
        inner = 3 * inputs
        self.expand = nn.Sequential(nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.Hardswish())
        depthwise = nn.Conv2d(
            inner, inner, 3, stride=stride, padding=dilation, dilation=dilation, groups=inner, bias=False
        )
        self.depthwise = nn.Sequential(depthwise, nn.BatchNorm2d(inner), nn.Hardswish())
        self.project = nn.Sequential(nn.Conv2d(inner, outputs, 1, bias=False), nn.BatchNorm2d(outputs))
        self.adds = stride == 1 and inputs == outputs

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's map."""
        found: Tensor = self.project(self.depthwise(self.expand(x)))
        return x + found if self.adds else found


class LRASPP(nn.Module):
    """LR-ASPP (Howard et al., 2019): depthwise separable convolutions, and a head that weighs them by a global pool.

    Its logits are smaller than the image by 8, as in training code that compares them with smaller labels.
    """

    def __init__(self, num_classes: int = 21, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 3, stride=2, padding=1), nn.Hardswish())
        self.low = nn.Sequential(
            Separable(width, width), Separable(width, 2 * width, 2), Separable(2 * width, 3 * width, 2)
        )
        self.high = nn.Sequential(
            Separable(3 * width, 3 * width),
            Separable(3 * width, 6 * width, 2),
            Separable(6 * width, 6 * width, dilation=2),
        )
        self.context = convolution(6 * width, 8 * width, 1)
        self.weigh = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(6 * width, 8 * width, 1), nn.Sigmoid())
        self.low_head, self.high_head = nn.Conv2d(3 * width, num_classes, 1), nn.Conv2d(8 * width, num_classes, 1)
        randomise(self)

    def forward(self, image: Tensor) -> Tensor:
        """Return logits of an eighth of the image's size."""
        low = self.low(self.stem(image))
        high = self.high(low)
        x = self.context(high) * self.weigh(high)
        x = functional.interpolate(x, size=low.shape[-2:], mode="bilinear", align_corners=False)
        logits: Tensor = self.low_head(low) + self.high_head(x)
        return logits


def monai_unet(num_classes: int = 5, width: int = 32) -> nn.Module:
    """Return MONAI's U-Net with residual units (package monai): instance normalisation and PReLU."""
    from monai.networks.nets import UNet as MonaiUNet

    channels = tuple(width * 2**level for level in range(4))
    network: nn.Module = MonaiUNet(2, 3, num_classes, channels, strides=(2, 2, 2), num_res_units=2)
    randomise(network)
    return network


def segformer(num_classes: int = 21, width: int = 32) -> nn.Module:
    """Return SegFormer-B0 (package transformers), whose logits are smaller than the image by 4."""
    from transformers import SegformerConfig, SegformerForSemanticSegmentation

    widths = [width, 2 * width, 5 * width, 8 * width]
    config = SegformerConfig(num_labels=num_classes, hidden_sizes=widths, decoder_hidden_size=8 * width)
    network: nn.Module = SegformerForSemanticSegmentation(config)
    return network
