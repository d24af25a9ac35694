"""The edits that rewrites are made of: constants, nodes at a place, maps made larger and smaller."""

from collections.abc import Container, Sequence
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporters.passes.static import SPATIAL_AXES, Window, static_shape
from fcn_deploy.onnx_file import LARGE_TENSOR_BYTES
from fcn_deploy.regions import Span

Array = npt.NDArray[Any]


def add_constant(model: ir.Model, name: str, array: Array) -> ir.Value:
    """A new initializer of that name, or of the first free `name_2`, `name_3`, ..."""
    free = _free_name(name, model.graph.initializers)
    tensor = ir.tensor(np.asarray(array, order="C"), name=free)
    value = ir.Value(name=free, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor)
    model.graph.initializers.add(value)
    return value


def _free_name(name: str, taken: Container[str | None]) -> str:
    candidates = (name if n == 1 else f"{name}_{n}" for n in count(1))
    return next(candidate for candidate in candidates if candidate not in taken)


def node_after(
    place: ir.Value,
    operator: str,
    inputs: Sequence[ir.Value],
    name: str,
    shape: Sequence[int],
    *attributes: ir.Attr,
) -> ir.Value:
    """Insert a node right behind the one that makes `place`; returns its output, of the dtype of `place`."""
    producer, graph = place.producer(), place.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{place.name} belongs to no graph")
    free = _free_name(name, {value.name for node in graph for value in node.outputs})
    output = ir.Value(name=free, shape=ir.Shape(shape), type=place.type)
    node = ir.Node("", operator, inputs, attributes, outputs=[output], name=free)
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return output


def window_shape(value: ir.Value, window: Window) -> tuple[int, ...]:
    """The shape of a window of a map."""
    shape = static_shape(value) or (1, 1)
    return *shape[:2], window[0].size, window[1].size


def relative(window: Window, within: Window) -> Window:
    """`window` in indices that count from the beginning of `within`."""
    return window[0].since(within[0].first), window[1].since(within[1].first)


def widened(model: ir.Model, value: ir.Value, have: Window, want: Window, *, constants: Array, name: str) -> ir.Value:
    """The window `want` of a map of which `value` is the smaller window `have`.

    Args:
        model: what the map belongs to.
        value: the window, N x C x height x width.
        have: where the window lies.
        want: what it is made; contains `have`.
        constants: 1 x C x height x width of the whole map, right wherever the window is not.
        name: of the nodes that are added.
    """
    sides = _parts(constants, [(have[0], side) for side in _beyond(have[1], want[1])])
    wide = _concatenated(model, value, sides, 3, f"{name}/widen")
    sides = _parts(constants, [(side, want[1]) for side in _beyond(have[0], want[0])])
    return _concatenated(model, wide, sides, 2, f"{name}/heighten")


def _beyond(have: Span, want: Span) -> tuple[Span, Span]:
    return Span(want.first, have.first - 1), Span(have.last + 1, want.last)


def _parts(constants: Array, windows: Sequence[Window]) -> list[Array]:
    return [constants[:, :, h.first : h.last + 1, w.first : w.last + 1] for h, w in windows]


def _concatenated(model: ir.Model, value: ir.Value, sides: Sequence[Array], axis: int, name: str) -> ir.Value:
    """Put constants before and behind a map along `axis`, right behind its node; an empty side is left out."""
    before, behind = sides
    shape, place = list(static_shape(value) or ()), value
    made: list[ir.Value] = []
    for side, where in ((before, "before"), (behind, "behind")):
        if made and np.array_equal(before, behind):
            made.append(made[0])
        elif side.shape[axis]:
            made.append(_spread(model, place, side, shape[0], f"{name}/{where}"))
            # Nodes go behind one another, so that the Concat comes behind all it reads.
            place = made[-1] if made[-1].producer() is not None else place
    if not made:
        return value
    shape[axis] += before.shape[axis] + behind.shape[axis]
    made.insert(1 if before.shape[axis] else 0, value)
    return node_after(place, "Concat", made, name, shape, ir.AttrInt64("axis", axis))


def _spread(model: ir.Model, place: ir.Value, part: Array, batch: int, name: str) -> ir.Value:
    """A constant for every image of the batch; in the file, a moat takes one number per channel."""
    shape = (batch, *part.shape[1:])
    stored = part[:, :, :1, :1] if (part == part[:, :, :1, :1]).all() else part
    if part.nbytes < LARGE_TENSOR_BYTES or stored.shape == shape:
        return add_constant(model, name, np.broadcast_to(part, shape))
    sizes = add_constant(model, f"{name}/shape", np.array(shape, dtype=np.int64))
    return node_after(place, "Expand", [add_constant(model, f"{name}/value", stored), sizes], name, shape)


def cut(model: ir.Model, value: ir.Value, window: Window, name: str) -> ir.Value:
    """Cut `window`, in indices of `value` itself, out of a map behind the node that makes it."""
    starts, ends = [span.first for span in window], [span.last + 1 for span in window]
    bounds = {"starts": starts, "ends": ends, "axes": SPATIAL_AXES}
    inputs = [add_constant(model, f"{name}/{what}", np.array(n, dtype=np.int64)) for what, n in bounds.items()]
    return node_after(value, "Slice", [value, *inputs], name, window_shape(value, window))


def take_over(old: ir.Value, new: ir.Value) -> None:
    """Let `new` stand wherever `old` did, under its name; `old` stays behind unused."""
    new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)
