"""Move a crop after an up-sampling or a 1x1 convolution to where it saves work.

Input cells that cannot reach the crop are cut off before a transposed convolution, and as much of the crop as is equal
on both sides becomes its padding (runtimes differ on more padding on one side). A crop behind a 1x1 convolution moves
before it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod

import onnx_ir as ir

from exporters.passes.cost import Machine
from exporters.passes.edit import (
    Rewrite,
    Window,
    attribute_ints,
    cut,
    first_input,
    only_reader,
    replace_value,
    slice_window,
    window_shape,
)
from fcn_deploy.graph import static_shape
from fcn_deploy.model_info import WINDOW_KEY
from fcn_deploy.regions import Span

Pads = tuple[int, int, int, int]  # top, left, bottom, right


@dataclass(frozen=True)
class FoldableCrop:
    """A Slice of height and width, and the convolution whose only reader it is."""

    node: ir.Node
    maker: ir.Node
    kept: Window


class FoldCrop(Rewrite):
    """Moves crops to where they save the most time on `machine`."""

    name = "fold-crop"

    def __init__(self, machine: Machine) -> None:
        self._machine = machine

    def find(self, model: ir.Model) -> Sequence[FoldableCrop]:
        """Return every crop behind a convolution of either kind."""
        found = []
        for node in model.graph:
            kept = slice_window(node)
            maker = first_input(node).producer() if kept is not None else None
            if kept is not None and maker is not None and maker.op_type in ("Conv", "ConvTranspose"):
                found.append(FoldableCrop(node, maker, kept))
        return found

    def check(self, found: FoldableCrop) -> str | None:
        """Refuse maps with other readers, unknown shapes, and crops that save nothing."""
        if only_reader(found.maker.outputs[0]) is None:
            return f"{found.maker.name} has other readers, which need all of it"
        if found.maker.op_type == "Conv":
            return self._check_convolution(found)
        if _deconvolution(found.maker) is None:
            return f"{found.maker.name} has dilations, gaps between its cells, or unknown shapes"
        cells, pads = self._plan(found)
        if (cells, pads) == (_all_cells(found.maker), _pads_of(found.maker)):
            return "every input cell reaches the crop, and more padding saves nothing on the target"
        return None

    def rewrite(self, model: ir.Model, found: FoldableCrop) -> str:
        """Crop before the convolution as far as possible; the Slice does the rest."""
        maker, source = found.maker, first_input(found.maker)
        if maker.op_type == "Conv":
            maker.replace_input_with(0, cut(model, source, found.kept, f"{maker.name}/crop"))
            maker.outputs[0].shape = ir.Shape(window_shape(maker.outputs[0], found.kept))
            _move_window(maker, found.kept)
            self._end(model, found, maker.outputs[0])
            return f"before {maker.name}"
        cells, pads = self._plan(found)
        done = [f"{pads[0]} x {pads[1]} pixels as padding"] if pads != _pads_of(maker) and any(pads) else []
        done += [f"only cells {cells[0]} x {cells[1]}"] if cells != _all_cells(maker) else []
        made, left = _shrink(maker, found.kept, cells, pads)
        if cells != _all_cells(maker):
            maker.replace_input_with(0, cut(model, source, cells, f"{maker.name}/cells"))
        self._end(model, found, made, left)
        return f"{maker.name}: {', '.join(done)}"

    def _check_convolution(self, found: FoldableCrop) -> str | None:
        if not is_pointwise(found.maker):
            return f"{found.maker.name} is not a 1x1 convolution"
        before, after = self._convolution_seconds(found)
        if after >= before:
            return f"cutting in front takes longer: {after * 1e6:.0f} us against {before * 1e6:.0f} us on the target"
        return None

    def _convolution_seconds(self, found: FoldableCrop) -> tuple[float, float]:
        """Return the time of a 1x1 convolution and a Slice, and of a Slice and the convolution behind it."""
        value, machine = found.maker.outputs[0], self._machine
        weight = prod(static_shape(found.maker.inputs[1]) or (1,))
        channels_in = (static_shape(found.maker.inputs[0]) or (1, 1))[1]
        batch, channels_out, height, width = static_shape(value) or (1, 1, 1, 1)
        kept = batch * found.kept[0].size * found.kept[1].size
        pixels, channels = batch * height * width, channels_in + channels_out
        before = machine.seconds(weight * pixels, channels * pixels) + machine.seconds(0, 2 * channels_out * kept)
        in_front = machine.copies_per_widening * machine.seconds(0, 2 * channels_in * kept)
        return before, in_front + machine.seconds(weight * kept, channels * kept)

    def _plan(self, found: FoldableCrop) -> tuple[Window, Pads]:
        """Return the input cells that reach the crop, and the padding of the transposed convolution."""
        strides, kernels, pads = _deconvolution(found.maker) or ((1, 1), (1, 1), (0, 0, 0, 0))
        cells, begins, ends = [], [], []
        for axis, (kept, whole) in enumerate(zip(found.kept, _all_cells(found.maker), strict=True)):
            stride, kernel, begin, end = strides[axis], kernels[axis], pads[axis], pads[axis + 2]
            # In pixels of the output without any padding.
            wanted = kept.since(-begin)
            first = -((kernel - 1 - wanted.first) // stride)
            span = Span(first, wanted.last // stride).common(whole)
            left = wanted.since(span.first * stride)
            even = min(left.first, stride * (span.size - 1) + kernel - 1 - left.last)
            even = even if self._machine.crops_deconvolutions else 0
            as_it_is = span == whole and 2 * even <= begin + end
            cells.append(span)
            begins.append(begin if as_it_is else even)
            ends.append(end if as_it_is else even)
        return (cells[0], cells[1]), (begins[0], begins[1], ends[0], ends[1])

    def _end(self, model: ir.Model, found: FoldableCrop, made: ir.Value, left: Window | None = None) -> None:
        if left is not None and window_shape(made, left) != static_shape(made):
            made = cut(model, made, left, str(found.node.name))
        replace_value(found.node.outputs[0], made)
        model.graph.remove(found.node, safe=True)


def _move_window(node: ir.Node, kept: Window) -> None:
    """Record that a node now computes only `kept` of its earlier window."""
    begins = (int(first) for first in node.metadata_props.get(WINDOW_KEY, "0 0").split())
    node.metadata_props[WINDOW_KEY] = " ".join(str(b + span.first) for b, span in zip(begins, kept, strict=True))


def is_pointwise(node: ir.Node) -> bool:
    """Return whether a Conv has a 1x1 kernel, stride 1 and no padding."""
    shape, strides, pads = static_shape(node.inputs[1]), attribute_ints(node, "strides"), attribute_ints(node, "pads")
    auto = node.attributes.get_string("auto_pad", "NOTSET") in ("NOTSET", "VALID")
    return shape is not None and shape[2:] == (1, 1) and set(strides) <= {1} and not any(pads) and auto


def is_plain_deconvolution(node: ir.Node) -> bool:
    """Return whether a ConvTranspose has neither dilations nor any padding of its output."""
    extra = [*attribute_ints(node, "output_padding"), *(d - 1 for d in attribute_ints(node, "dilations"))]
    auto = node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET"
    return not any(extra) and not auto and "output_shape" not in node.attributes


def _deconvolution(node: ir.Node) -> tuple[Sequence[int], Sequence[int], Sequence[int]] | None:
    """Return strides, kernel and pads of a transposed convolution, or None where this pass does not apply."""
    shape = static_shape(node.inputs[1])
    if shape is None or len(shape) != 4 or not is_plain_deconvolution(node) or static_shape(node.inputs[0]) is None:
        return None
    strides = attribute_ints(node, "strides", (1, 1))
    if any(kernel < stride for kernel, stride in zip(shape[2:], strides, strict=True)):
        return None
    return strides, shape[2:], _pads_of(node)


def _pads_of(node: ir.Node) -> Pads:
    top, left, bottom, right = attribute_ints(node, "pads", (0, 0, 0, 0))
    return top, left, bottom, right


def _all_cells(node: ir.Node) -> Window:
    _, _, height, width = static_shape(node.inputs[0]) or (0, 0, 0, 0)
    return Span(0, height - 1), Span(0, width - 1)


def _shrink(node: ir.Node, kept: Window, cells: Window, padding: Pads) -> tuple[ir.Value, Window]:
    """Set the padding of a transposed convolution of `cells`; returns its output and where in it `kept` is now."""
    strides, kernels, pads = _deconvolution(node) or ((1, 1), (1, 1), (0, 0, 0, 0))
    sizes = [strides[i] * (cells[i].size - 1) + kernels[i] - padding[i] - padding[i + 2] for i in range(2)]
    left = [kept[i].since(cells[i].first * strides[i] + padding[i] - pads[i]) for i in range(2)]
    node.attributes.add(ir.AttrInt64s("pads", list(padding)))
    value = node.outputs[0]
    value.shape = ir.Shape([*(static_shape(value) or ())[:2], *sizes])
    return value, (left[0], left[1])
