"""What of a graph is known without running it: shapes, constants, and what a Slice keeps of a map."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from fcn_deploy.regions import Span

SPATIAL_AXES = (2, 3)

Window = tuple[Span, Span]


def static_shape(value: ir.Value) -> tuple[int, ...] | None:
    """The sizes of a value, or None unless all are known."""
    if value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(str(size)) for size in value.shape)


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """The content of a constant value, or None when it is none."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None


def constant_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """The integers of a constant one-dimensional value, or None when it is none."""
    found = constant(value)
    return tuple(int(n) for n in found.ravel()) if found is not None else None


def slice_window(node: ir.Node) -> Window | None:
    """What a Slice keeps of height and width; None unless it is static, of step 1, and leaves other axes whole."""
    if node.op_type != "Slice":
        return None
    shape = static_shape(node.inputs[0]) if node.inputs and node.inputs[0] is not None else None
    bounds = [constant_ints(value) for value in node.inputs[1:]]
    if shape is None or len(shape) != 4 or len(bounds) < 2 or any(bound is None for bound in bounds):
        return None
    starts, ends, axes, strides = _slice_arguments([bound for bound in bounds if bound is not None])
    spans = [Span(0, size - 1) for size in shape]
    for start, end, axis, stride in zip(starts, ends, axes, strides, strict=True):
        size = shape[axis]
        first, stop, _ = slice(start, end).indices(size)
        if stride != 1 or (axis not in {2, 3, -1, -2} and (first, stop) != (0, size)):
            return None
        spans[axis] = Span(first, stop - 1)
    return (spans[2], spans[3]) if spans[2].size > 0 and spans[3].size > 0 else None


def _slice_arguments(bounds: Sequence[tuple[int, ...]]) -> tuple[Sequence[int], ...]:
    starts, ends = bounds[:2]
    axes = bounds[2] if len(bounds) > 2 else tuple(range(len(starts)))
    return starts, ends, axes, bounds[3] if len(bounds) > 3 else (1,) * len(starts)
