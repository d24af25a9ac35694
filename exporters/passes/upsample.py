"""Replace a transposed convolution of kernel 2s and stride s by a 2x2 convolution: the same sums without a scatter.

Output pixel s*q + r sums the input cells q and q - 1, each through one tap of the kernel: tap r and tap s + r. Taking
the s*s remainders r as channels makes that an ordinary 2x2 convolution, padded by one cell, whose K*s*s channels
(class, row, column) are interleaved to pixels. Where the kernel is exactly diagonal, as a bilinear one that was never
trained across classes is, every class is a group of its own.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporters.passes.cost import Machine
from exporters.passes.edit import (
    Rewrite,
    Window,
    add_constant,
    attribute_ints,
    constant,
    cut,
    first_input,
    node_after,
    only_reader,
    replace_value,
    required_constant,
    reshape_after,
    slice_window,
)
from exporters.passes.fold_crop import is_plain_deconvolution
from fcn_deploy.graph import static_shape
from fcn_deploy.regions import Span


@dataclass(frozen=True)
class UpsampleSite:
    """One transposed convolution, and the Slice that is its only reader, if there is one."""

    node: ir.Node
    crop: ir.Node | None

    @property
    def stride(self) -> int:
        """Return output pixels per input cell, along both axes; 0 when they differ."""
        height, width = attribute_ints(self.node, "strides", (1, 1))
        return height if height == width else 0

    @property
    def pads(self) -> Sequence[int]:
        """Return the padding: top, left, bottom, right."""
        return attribute_ints(self.node, "pads", (0, 0, 0, 0))

    @property
    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
        """Return the shapes of input and output, when both are known."""
        given, made = static_shape(self.node.inputs[0]), static_shape(self.node.outputs[0])
        return (given, made) if given is not None and made is not None else None


class Upsample(Rewrite):
    """Replaces transposed convolutions where a convolution is cheaper on `machine`."""

    name = "upsample"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def find(self, model: ir.Model) -> Sequence[UpsampleSite]:
        """Return every transposed convolution."""
        nodes = [node for node in model.graph if node.op_type == "ConvTranspose" and node.domain == ""]
        return [UpsampleSite(node, _only_slice(node)) for node in nodes]

    def check(self, found: UpsampleSite) -> str | None:
        """Refuse other kernels, non-static shapes and weights, and replacements that would not be faster."""
        weight, stride = constant(found.node.inputs[1]), found.stride
        if weight is None or found.shapes is None or weight.ndim != 4:
            return "weights or shapes are not constant"
        if stride < 2 or weight.shape[2:] != (2 * stride, 2 * stride):
            return f"kernel {weight.shape[2]}x{weight.shape[3]} is not twice its stride {stride}"
        if found.node.attributes.get_int("group", 1) != 1 or not is_plain_deconvolution(found.node):
            return "it has groups, dilations or padding of its output"
        now, then = self._seconds(found, is_diagonal(weight))
        if then >= now and not is_diagonal(weight):
            return f"a 2x2 convolution takes longer: {then * 1e6:.0f} us against {now * 1e6:.0f} us on the target"
        return None

    def rewrite(self, model: ir.Model, found: UpsampleSite) -> str:
        """Replace the node by a convolution, or by a transposed one with groups."""
        weight = required_constant(found.node.inputs[1])
        diagonal = is_diagonal(weight)
        now, then = self._seconds(found, diagonal)
        return _group(model, found, weight) if then >= now else _convolve(model, found, weight, diagonal)

    def _seconds(self, found: UpsampleSite, diagonal: bool) -> tuple[float, float]:
        """Return the time of the transposed convolution, and of a 2x2 convolution and its interleaving."""
        (given, made), stride = found.shapes or ((), ()), found.stride
        groups = given[1] if diagonal else 1
        batch, channels, cells = given[0], made[1], given[2] * given[3]
        products = batch * channels * (2 * stride) ** 2 * cells
        output = batch * channels * made[2] * made[3]
        grid = (given[2] + 1) * (given[3] + 1)
        laid_out = batch * channels * stride**2 * grid
        scattered = self._machine.copies_per_deconvolution * 2 * products
        now = self._machine.seconds(products * given[1] // groups, scattered + output)
        convolved = self._machine.seconds(4 * laid_out * given[1] // groups, laid_out)
        moved = self._machine.seconds(0, 2 * laid_out)
        cropped = self._machine.seconds(0, 2 * output) if any(found.pads) and found.crop is None else 0.0
        return now, convolved + moved + cropped


def is_diagonal(weight: npt.NDArray[Any]) -> bool:
    """Return whether a kernel of several channels maps each channel to itself only, exactly."""
    channels = weight.shape[0]
    if channels != weight.shape[1] or channels == 1:
        return False
    off = ~np.eye(channels, dtype=bool)
    return not weight[off].any()


def convolution_weight(weight: npt.NDArray[Any], stride: int, *, diagonal: bool) -> npt.NDArray[Any]:
    """Return the 2x2 kernel of the convolution: (K * s * s) x channels in (1 when diagonal) x 2 x 2."""
    if diagonal:
        weight = weight[range(len(weight)), range(len(weight))][None]
    channels_in, channels_out = weight.shape[:2]
    taps = weight.reshape(channels_in, channels_out, 2, stride, 2, stride)
    # Tap 0 of the convolution reads cell q - 1, whose product is that of tap s + r of the kernel.
    flipped = taps[:, :, ::-1, :, ::-1, :].transpose(1, 3, 5, 0, 2, 4)
    return np.ascontiguousarray(flipped.reshape(channels_out * stride**2, channels_in, 2, 2))


def _only_slice(node: ir.Node) -> ir.Node | None:
    """Return the Slice of height and width that is the only reader of a node."""
    reader = only_reader(node.outputs[0])
    return reader if reader is not None and slice_window(reader) is not None else None


def _group(model: ir.Model, found: UpsampleSite, weight: npt.NDArray[Any]) -> str:
    """Keep the transposed convolution, one group per class."""
    channels = weight.shape[0]
    kernel = np.ascontiguousarray(weight[range(channels), range(channels)][:, None])
    found.node.replace_input_with(1, add_constant(model, f"{found.node.name}/diagonal", kernel))
    found.node.attributes.add(ir.AttrInt64("group", channels))
    return f"diagonal: {channels} groups"


def _convolve(model: ir.Model, found: UpsampleSite, weight: npt.NDArray[Any], diagonal: bool) -> str:
    node, stride = found.node, found.stride
    given, (batch, channels, height, width) = found.shapes or ((), (0, 0, 0, 0))
    name, output = str(node.name), node.outputs[0]
    kernel = add_constant(model, f"{name}/convolve/weight", convolution_weight(weight, stride, diagonal=diagonal))
    inputs = [first_input(node), kernel]
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = constant(node.inputs[2])
        spread = np.repeat(bias if bias is not None else np.zeros(channels), stride**2)
        inputs.append(add_constant(model, f"{name}/convolve/bias", spread.astype(weight.dtype)))
    grid = given[2] + 1, given[3] + 1
    groups = channels if diagonal else 1
    products = batch, channels * stride**2, *grid
    cells = node_after(output, "Conv", inputs, f"{name}/convolve", products, pads=[1, 1, 1, 1], group=groups)
    full = _interleaved(model, cells, (batch, channels, *grid), stride, name)
    _crop(model, found, full, (Span(0, height - 1), Span(0, width - 1)))
    return (
        f"a 2x2 convolution of {channels * stride**2} channels{f', {groups} groups' if diagonal else ''}, interleaved"
    )


def _interleaved(model: ir.Model, cells: ir.Value, shape: tuple[int, ...], stride: int, name: str) -> ir.Value:
    """Lay N x (C s s) x H x W cells out as N x C x (H s) x (W s) pixels.

    That is DepthToSpace, axis by axis: ONNX Runtime moves one axis at a time twice as fast as two at once.
    """
    batch, channels, height, width = shape
    bands, wide = batch * channels, stride * width
    value = reshape_after(model, cells, cells, (bands * stride, stride, height * width), f"{name}/by_row")
    value = node_after(
        value, "Transpose", [value], f"{name}/wide", (bands * stride, height * width, stride), perm=(0, 2, 1)
    )
    value = reshape_after(model, value, value, (bands, stride, height, wide), f"{name}/by_band")
    value = node_after(value, "Transpose", [value], f"{name}/tall", (bands, height, stride, wide), perm=(0, 2, 1, 3))
    return reshape_after(model, value, value, (batch, channels, stride * height, wide), name)


def _crop(model: ir.Model, found: UpsampleSite, full: ir.Value, whole: Window) -> None:
    """Cut the output of the node, or of the Slice behind it, out of `full`."""
    kept = (slice_window(found.crop) if found.crop is not None else None) or whole
    last = found.crop if found.crop is not None else found.node
    top, left = found.pads[:2]
    window = kept[0].since(-top), kept[1].since(-left)
    size = static_shape(full) or (0, 0, 0, 0)
    cropped = full
    if window != (Span(0, size[2] - 1), Span(0, size[3] - 1)):
        cropped = cut(model, full, window, str(last.name) if found.crop is not None else f"{found.node.name}/crop")
    replace_value(last.outputs[0], cropped)
    for node in (last, found.node):
        if node.graph is not None:
            node.graph.remove(node, safe=True)
