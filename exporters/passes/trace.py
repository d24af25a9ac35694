"""Follows the constant frame of a padded image through a graph: the regions of every map, and why they end.

Works on any ONNX graph of static shapes: from the first Conv or Pad that frames a map, over Conv, MaxPool, Pad and
operators that treat every pixel alike, to whatever is not known here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import onnx_ir as ir

from exporters.passes.motions import Motions, motions_of
from exporters.passes.static import Window, slice_window, static_shape
from fcn_deploy.regions import Region, image_region

Regions = tuple[Region, Region]


@dataclass(frozen=True)
class Step:
    """One node on the way, from `source` to `output`.

    Attributes:
        node: the node.
        source: the map it reads.
        output: the map it makes.
        motions: how it slides along height and width, or None when it treats every pixel alike.
    """

    node: ir.Node
    source: ir.Value
    output: ir.Value
    motions: Motions | None

    def read_by(self, outputs: Window) -> Window:
        """The window of the source that a window of the output is computed from."""
        if self.motions is None:
            return outputs
        return self.motions[0].read_by(outputs[0]), self.motions[1].read_by(outputs[1])

    @property
    def is_local(self) -> bool:
        """Whether every pixel of the output depends on the pixel at its own place alone."""
        return self.motions is None or all(m.kernel == m.stride == 1 and m.begin == m.end == 0 for m in self.motions)


@dataclass(frozen=True)
class Trace:
    """What is known of a graph's maps.

    Attributes:
        steps: nodes in order; the first frames the image.
        regions: of every map on the way, height then width; the last of each branch may be all live.
        slices: what reads a map of the trace and keeps a static part of height and width, with that part.
        whole_readers: the other nodes behind the trace that read a map, all of it.
        outputs: the maps that are outputs of the graph.
        ends: why no map behind these is known, one reason per place where the trace ends.
    """

    steps: tuple[Step, ...] = ()
    regions: Mapping[ir.Value, Regions] = field(default_factory=dict)
    slices: Mapping[ir.Value, tuple[tuple[ir.Node, Window], ...]] = field(default_factory=dict)
    whole_readers: Mapping[ir.Value, tuple[ir.Node, ...]] = field(default_factory=dict)
    outputs: frozenset[ir.Value] = frozenset()
    ends: tuple[str, ...] = ()

    def whole(self, value: ir.Value) -> Window:
        """All of a map, or of the image."""
        height, width = self.regions.get(value) or _image(value) or (image_region(0), image_region(0))
        return height.whole, width.whole

    def is_read_whole(self, value: ir.Value) -> bool:
        """Whether something behind the trace needs all of a map."""
        return value in self.outputs or bool(self.whole_readers[value])

    def is_read_outside(self, value: ir.Value) -> bool:
        """Whether anything behind the trace reads a map."""
        return self.is_read_whole(value) or bool(self.slices[value])


def trace(model: ir.Model) -> Trace:
    """Follow the frame through `model`, whose values have shapes; nothing is changed."""
    steps: list[Step] = []
    regions: dict[ir.Value, Regions] = {}
    ends: list[str] = []
    for node in model.graph:
        source = node.inputs[0] if node.inputs else None
        if source is None or (steps and source not in regions) or (steps and _flooded(regions[source])):
            continue
        given = regions.get(source) or _image(source)
        motions = motions_of(node, first=not steps)
        if given is None or (not steps and not _frames(motions)):
            continue
        if isinstance(motions, str):
            ends.append(f"{node.name}: {motions}")
            continue
        found = given if motions is None else (motions[0].region(given[0]), motions[1].region(given[1]))
        if any(region.size < 1 for region in found):
            continue
        steps.append(Step(node, source, node.outputs[0], motions))
        if _flooded(found):
            ends.append(f"{node.name}: all of its map depends on the image")
        regions[node.outputs[0]] = found
    slices = {value: tuple(_slices(value)) for value in regions}
    known = {step.node for step in steps} | {node for found in slices.values() for node, _ in found}
    readers = {value: tuple(use.node for use in value.uses() if use.node not in known) for value in regions}
    outputs = frozenset(value for value in regions if value.is_graph_output())
    return Trace(tuple(steps), regions, slices, readers, outputs, tuple(ends))


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


def _frames(motions: Motions | str | None) -> bool:
    """Whether a node can be where the frame begins: it pads each side of both axes."""
    return isinstance(motions, tuple) and all(motion.begin > 0 and motion.end > 0 for motion in motions)


def _flooded(regions: Regions) -> bool:
    """Whether nothing constant is left along either axis."""
    return all(region.live == region.whole for region in regions)
