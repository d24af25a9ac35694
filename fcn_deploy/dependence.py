"""What the maps of a graph depend on: for every row and column of a map, which rows and columns of the image.

Follows indices through the graph, exactly: paddings, crops, strides and the phases of up-samplings included. The widest
range is the receptive field; a row that depends on none is constant.
"""

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fcn_deploy.graph import static_shape
from fcn_deploy.model_info import PIXELS_NAME

_DIMENSIONS = 4
_TO_PLANES = (0, 3, 1, 2)  # the order in which pixels become planes
# They treat every pixel alike, or combine maps pixel by pixel.
_POINTWISE = frozenset({
    "Add", "BatchNormalization", "Cast", "Clip", "DequantizeLinear", "Div", "Dropout", "Elu", "Erf", "Gather", "Gelu",
    "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max", "Min", "Mul", "PRelu", "QuantizeLinear", "Relu",
    "Sigmoid", "Softmax", "Sub", "Tanh",
})  # fmt: skip
# First and last cell that an interpolated pixel reads, from the cell before its position on.
_INTERPOLATED = {"linear": (0, 1), "cubic": (-1, 2)}
_NONE = np.iinfo(np.int64).max

Indices = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Ranges:
    """Of every index of a map along one axis, the first and the last pixel of the image that it depends on."""

    first: Indices  # a huge number where it depends on none
    last: Indices  # -1 where it depends on none

    @property
    def widest(self) -> int:
        """The receptive field: the largest number of pixels that one index depends on; 0 if none does on any."""
        return max(int((self.last - self.first)[self.is_live].max(initial=-1)) + 1, 0)

    @property
    def is_live(self) -> npt.NDArray[np.bool_]:
        """Whether an index depends on the image."""
        return self.last >= 0

    def taken(self, indices: Indices) -> "Ranges":
        """Return those of some indices; none for indices beyond the map, which are padding."""
        inside = (indices >= 0) & (indices < len(self.first))
        clipped = np.clip(indices, 0, len(self.first) - 1)
        return Ranges(np.where(inside, self.first[clipped], _NONE), np.where(inside, self.last[clipped], -1))

    def all_in_one(self) -> "Ranges":
        """Return a single index that depends on what any of these does."""
        return Ranges(self.first.min(keepdims=True), self.last.max(keepdims=True))


Axes = tuple[Ranges, Ranges]


@dataclass(frozen=True)
class Dependence:
    """What a map depends on."""

    receptive_field: tuple[int, int]  # height and width, in pixels of the image
    live: float  # share of its pixels that depend on the image, 0..1


def dependences(model: ir.Model) -> dict[str, Dependence]:
    """Return what the maps of a graph of static shapes depend on, by name.

    Maps behind an operator that is not followed (products of matrices, reshaping) are left out.
    """
    known: dict[ir.Value, Axes] = {}
    for value in model.graph.inputs:
        shape = _shape(value)
        if len(shape) == _DIMENSIONS and 0 not in shape:
            height, width = shape[1:3] if value.name == PIXELS_NAME else shape[2:]
            known[value] = (_identity(height), _identity(width))
    constants: set[ir.Value] = set(model.graph.initializers.values())
    for node in model.graph:
        given = [value for value in node.inputs if value is not None]
        if all(value in constants for value in given):
            constants |= set(node.outputs)
        elif not node.domain and all(value in known or value in constants for value in given) and _has_pixels(node):
            found = _of(node, known)
            known |= dict.fromkeys(node.outputs, found) if found is not None else {}
    return {str(value.name): _summary(axes) for value, axes in known.items() if len(_shape(value)) == _DIMENSIONS}


def _has_pixels(node: ir.Node) -> bool:
    return all(0 not in _shape(value) for value in (*node.inputs, *node.outputs))


def _summary(axes: Axes) -> Dependence:
    rows, columns = axes
    return Dependence((rows.widest, columns.widest), float(rows.is_live.mean() * columns.is_live.mean()))


def _identity(size: int) -> Ranges:
    return Ranges(np.arange(size), np.arange(size))


def _constant(size: int) -> Ranges:
    return Ranges(np.full(size, _NONE), np.full(size, -1))


def _union(given: Iterable[Ranges]) -> Ranges:
    """Return what depends on any of several; those of a single index are spread."""
    several = list(given)
    size = max(len(one.first) for one in several)
    firsts = [np.broadcast_to(one.first, size) for one in several]
    lasts = [np.broadcast_to(one.last, size) for one in several]
    return Ranges(np.minimum.reduce(firsts), np.maximum.reduce(lasts))


def _shape(value: ir.Value | None) -> tuple[int, ...]:
    return static_shape(value) or ()


def _of(node: ir.Node, known: Mapping[ir.Value, Axes]) -> Axes | None:
    """Return what the output of a node depends on; None if the node is not followed."""
    rows = _along(node, 0, known)
    columns = _along(node, 1, known) if rows is not None else None
    return (rows, columns) if rows is not None and columns is not None else None


def _along(node: ir.Node, index: int, known: Mapping[ir.Value, Axes]) -> Ranges | None:
    """Return the same along one axis: 0 is height, 1 width."""
    maps = [known[value][index] for value in node.inputs if value is not None and value in known]
    axis, operator = 2 + index, node.op_type
    if operator in _POINTWISE or tuple(node.attributes.get_ints("perm") or ()) == _TO_PLANES:
        return _union(maps)
    size = (*_shape(node.outputs[0]), 0, 0, 0, 0)[axis]
    if operator == "Concat":
        return _concatenated(node, axis, index, known)
    follow = _FOLLOWED.get(operator)
    return follow(node, index, maps[0], size) if follow is not None else None


def _concatenated(node: ir.Node, axis: int, index: int, known: Mapping[ir.Value, Axes]) -> Ranges:
    """Put maps and constants behind one another along their axis, or channel upon channel."""
    parts = [
        known[value][index] if value in known else _constant((*_shape(value), 0, 0, 0, 0)[axis])
        for value in node.inputs
        if value is not None
    ]
    if node.attributes.get_int("axis", 0) not in (axis, axis - _DIMENSIONS):
        return _union(parts)
    return Ranges(np.concatenate([one.first for one in parts]), np.concatenate([one.last for one in parts]))


def _taps(node: ir.Node, index: int) -> tuple[int, int, int, int]:
    """Return kernel, stride, dilation and padding before the map."""
    weights = _shape(node.inputs[1]) if len(node.inputs) > 1 else ()
    kernels = node.attributes.get_ints("kernel_shape") or weights[2:] or (1, 1)
    others = (
        node.attributes.get_ints(name) or default for name, default in (("strides", (1, 1)), ("dilations", (1, 1)))
    )
    stride, dilation = (int(found[index]) for found in others)
    pads = node.attributes.get_ints("pads") or (0, 0, 0, 0)
    return int(kernels[index]), stride, dilation, int(pads[index])


def _slid(node: ir.Node, index: int, given: Ranges, size: int) -> Ranges:
    kernel, stride, dilation, pad = _taps(node, index)
    begins = np.arange(size) * stride - pad
    return _union(given.taken(begins + tap * dilation) for tap in range(kernel))


def _transposed(node: ir.Node, index: int, given: Ranges, size: int) -> Ranges:
    """Output i has tap t of input (i + pad - t dilation) / stride, where that is whole."""
    kernel, stride, dilation, pad = _taps(node, index)
    found = []
    for tap in range(kernel):
        position = np.arange(size) + pad - tap * dilation
        found.append(given.taken(np.where(position % stride == 0, position // stride, -1)))
    return _union(found)


def _reduced(_node: ir.Node, _index: int, given: Ranges, size: int) -> Ranges | None:
    return given.all_in_one() if size == 1 else None


def _resized(node: ir.Node, _index: int, given: Ranges, size: int) -> Ranges | None:
    before = len(given.first)
    if before == size:
        return given
    positions = _positions(node.attributes.get_string("coordinate_transformation_mode", "half_pixel"), before, size)
    if positions is None:
        return None
    mode = node.attributes.get_string("mode", "nearest")
    if mode == "nearest":
        rounding = node.attributes.get_string("nearest_mode", "round_prefer_floor")
        nearest = np.floor(positions) if rounding == "floor" else np.ceil(positions - 0.5)
        return given.taken(np.clip(nearest, 0, before - 1).astype(np.int64))
    begin, end = _INTERPOLATED.get(str(mode), (0, 1))
    cell = np.floor(positions).astype(np.int64)
    # On a cell's own position its neighbours weigh nothing.
    exact = positions == cell
    reads = [np.where(exact, cell, cell + offset) for offset in range(begin, end + 1)]
    return _union(given.taken(np.clip(cells, 0, before - 1)) for cells in reads)


def _positions(mode: str | None, before: int, after: int) -> npt.NDArray[np.float64] | None:
    """Return where the pixels of a resized map lie in the map before (ONNX, operator Resize)."""
    indices = np.arange(after, dtype=np.float64)
    if mode == "align_corners":
        return indices * (before - 1) / max(after - 1, 1)
    if mode == "asymmetric":
        return indices * before / after
    if mode in ("half_pixel", "pytorch_half_pixel"):
        return np.clip((indices + 0.5) * before / after - 0.5, 0, None)
    return None


def _moved(node: ir.Node, index: int, given: Ranges, size: int) -> Ranges:
    return given.taken(_indices_before(node, 2 + index, size, len(given.first)))


def _indices_before(node: ir.Node, axis: int, size: int, before: int) -> Indices:
    """Return the indices before a Slice or Pad of its output's; beyond the map where a Pad adds some."""
    bounds = [_integers(value) for value in node.inputs[1:]]
    if node.op_type == "Pad":
        axes = bounds[2] if len(bounds) > 2 and bounds[2] else tuple(range(_DIMENSIONS))
        begins = dict(zip((one % _DIMENSIONS for one in axes), bounds[0], strict=False))
        return np.arange(size) - begins.get(axis, 0)
    axes = bounds[2] if len(bounds) > 2 and bounds[2] else tuple(range(len(bounds[0])))
    places = {one % _DIMENSIONS: place for place, one in enumerate(axes)}
    if axis not in places:
        return np.arange(size)
    steps = bounds[3] if len(bounds) > 3 and bounds[3] else (1,) * len(axes)
    place = places[axis]
    return np.arange(before)[slice(bounds[0][place], bounds[1][place], steps[place])]


def _integers(value: ir.Value | None) -> Sequence[int]:
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tuple(int(n) for n in tensor.numpy().ravel()) if tensor is not None else ()


# How the range of an output follows from that of the input, by operator: (node, index of the axis, input, size).
_FOLLOWED: Mapping[str, Callable[[ir.Node, int, Ranges, int], Ranges | None]] = {
    **dict.fromkeys(("Conv", "MaxPool", "AveragePool"), _slid),
    **dict.fromkeys(("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax", "ReduceSum"), _reduced),
    **dict.fromkeys(("Slice", "Pad"), _moved),
    "ConvTranspose": _transposed,
    "Resize": _resized,
}
