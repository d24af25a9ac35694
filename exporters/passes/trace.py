"""Follows the constant frame of a padded image through a graph: the regions of every map, and where they end.

Works on any ONNX graph of static shapes: from the first Conv or Pad that frames a map, over Conv, MaxPool, Pad and
operators that treat every pixel alike, up to unsupported operators.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from exporters.passes.edit import Window, attribute_ints, constant, constant_ints, slice_window
from fcn_deploy.graph import static_shape
from fcn_deploy.regions import Region, Sliding, image_region

POINTWISE = frozenset({"Relu", "Clip", "BatchNormalization"})
Slidings = tuple[Sliding, Sliding]
Regions = tuple[Region, Region]


@dataclass(frozen=True)
class Step:
    """One node of a trace, from `source` to `output`."""

    node: ir.Node  # the node
    source: ir.Value  # the map it reads
    output: ir.Value  # the map it computes
    slidings: Slidings | None  # how it slides along height and width, or None when it treats every pixel alike

    def read_by(self, outputs: Window) -> Window:
        """Return the window of the source that a window of the output is computed from."""
        if self.slidings is None:
            return outputs
        return self.slidings[0].read_by(outputs[0]), self.slidings[1].read_by(outputs[1])

    @property
    def is_local(self) -> bool:
        """Return whether every pixel of the output depends on the pixel at its own place alone."""
        return self.slidings is None or all(m.kernel == m.stride == 1 and m.begin == m.end == 0 for m in self.slidings)


@dataclass(frozen=True)
class Trace:
    """The maps of a graph between its image and the last map with a constant part."""

    steps: tuple[Step, ...] = ()  # nodes in order; the first frames the image
    # of every map of the trace, height then width; the last of each branch may be all live
    regions: Mapping[ir.Value, Regions] = field(default_factory=dict)
    # the Slices that keep a static window of a map, each with that window
    slices: Mapping[ir.Value, tuple[tuple[ir.Node, Window], ...]] = field(default_factory=dict)
    # the other nodes outside the trace that read a map, all of it
    whole_readers: Mapping[ir.Value, tuple[ir.Node, ...]] = field(default_factory=dict)
    outputs: frozenset[ir.Value] = frozenset()  # the maps that are outputs of the graph
    stops: tuple[str, ...] = ()  # why the trace stops, one reason per place

    def whole(self, value: ir.Value) -> Window:
        """Return the whole window of a map, or of the image."""
        height, width = self.regions.get(value) or _image(value) or (image_region(0), image_region(0))
        return height.whole, width.whole

    def is_read_whole(self, value: ir.Value) -> bool:
        """Return whether something outside the trace needs all of a map."""
        return value in self.outputs or bool(self.whole_readers[value])

    def is_read_outside(self, value: ir.Value) -> bool:
        """Return whether anything outside the trace reads a map."""
        return self.is_read_whole(value) or bool(self.slices[value])


def trace(model: ir.Model) -> Trace:
    """Follow the frame through `model`, whose values have shapes; nothing is changed."""
    steps: list[Step] = []
    regions: dict[ir.Value, Regions] = {}
    stops: list[str] = []
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if source is None or (steps and source not in regions) or (steps and _all_live(regions[source])):
            continue
        given = regions.get(source) or _image(source)
        slidings = slidings_of(node, first=not steps)
        if given is None or (not steps and not _pads_every_side(slidings)):
            continue
        if isinstance(slidings, str):
            stops.append(f"{node.name}: {slidings}")
            continue
        found = given if slidings is None else (slidings[0].region(given[0]), slidings[1].region(given[1]))
        if any(region.size < 1 for region in found):
            continue
        steps.append(Step(node, source, node.outputs[0], slidings))
        if _all_live(found):
            stops.append(f"{node.name}: all of its map depends on the image")
        regions[node.outputs[0]] = found
    slices = {value: tuple(_slices(value)) for value in regions}
    known = {step.node for step in steps} | {node for found in slices.values() for node, _ in found}
    readers = {value: tuple(use.node for use in value.uses() if use.node not in known) for value in regions}
    outputs = frozenset(value for value in regions if value.is_graph_output())
    return Trace(tuple(steps), regions, slices, readers, outputs, tuple(stops))


def _slices(value: ir.Value) -> Iterator[tuple[ir.Node, Window]]:
    for use in value.uses():
        kept = slice_window(use.node) if use.idx == 0 else None
        if kept is not None:
            yield use.node, kept


def _image(value: ir.Value) -> Regions | None:
    shape = static_shape(value)
    if shape is None or len(shape) != 4:
        return None
    return image_region(shape[2]), image_region(shape[3])


def _pads_every_side(slidings: Slidings | str | None) -> bool:
    """Return whether a node pads each side of both axes, so that the frame can begin there."""
    return isinstance(slidings, tuple) and all(sliding.begin > 0 and sliding.end > 0 for sliding in slidings)


def _all_live(regions: Regions) -> bool:
    """Return whether no constant part is left along either axis."""
    return all(region.live == region.whole for region in regions)


def slidings_of(node: ir.Node, *, first: bool) -> Slidings | str | None:
    """Return how a node slides; None for one that treats every pixel alike, the reason for one that is not followed.

    Padding is neutral where the frame begins (it makes the moat), and in a max pool (which ignores it).
    """
    if node.domain or node.op_type not in (*POINTWISE, "Conv", "MaxPool", "Pad"):
        return f"{node.op_type} is not followed"
    if node.op_type in POINTWISE:
        return _pointwise(node)
    if node.op_type == "Pad":
        return _pad(node, first)
    if node.op_type == "MaxPool":
        return "MaxPool outputs indices" if len(node.outputs) > 1 else _window_operator(node, None, neutral=True)
    return _window_operator(node, node.inputs[1], neutral=first)


def _pointwise(node: ir.Node) -> str | None:
    if len(node.outputs) > 1:
        return f"{node.op_type} has {len(node.outputs)} outputs"
    dynamic = [v for v in node.inputs[1:] if v is not None and ir.convenience.get_const_tensor(v) is None]
    return f"{node.op_type} has inputs that are not constant" if dynamic else None


def _window_operator(node: ir.Node, weight: ir.Value | None, *, neutral: bool) -> Slidings | str:
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{node.op_type} with auto_pad"
    kernels = attribute_ints(node, "kernel_shape", (static_shape(weight) or ())[2:])
    if len(kernels) != 2 or (weight is not None and ir.convenience.get_const_tensor(weight) is None):
        return f"{node.op_type} is not two-dimensional with constant weights"
    strides, dilations = (attribute_ints(node, name, (1, 1)) for name in ("strides", "dilations"))
    pads, ceil = attribute_ints(node, "pads", (0, 0, 0, 0)), bool(node.attributes.get_int("ceil_mode", 0))
    height, width = (
        Sliding(kernels[i], strides[i], pads[i], pads[i + 2], dilations[i], ceil, neutral) for i in range(2)
    )
    return height, width


def _pad(node: ir.Node, first: bool) -> Slidings | str:
    if node.attributes.get_string("mode", "constant") != "constant":
        return "Pad is not constant"
    amounts = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if amounts is None or len(amounts) != 8 or len(node.inputs) > 3:
        return "Pad is not static with four dimensions and no axes"
    if any(amounts[i] for i in (0, 1, 4, 5)) or min(amounts) < 0:
        return "Pad reaches beyond height and width, or crops"
    if not first and any(_fill_values(node)):
        return "Pad fills with a value other than 0"
    height, width = (Sliding(1, begin=amounts[i], end=amounts[i + 4], neutral=first) for i in (2, 3))
    return height, width


def _fill_values(node: ir.Node) -> tuple[float, ...]:
    found = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return tuple(float(x) for x in found.ravel()) if found is not None else ()


def constant_fill(node: ir.Node) -> float:
    """Return the fill value of a Pad, or of a Conv's padding."""
    return (_fill_values(node) or (0.0,))[0] if node.op_type == "Pad" else 0.0
