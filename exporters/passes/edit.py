"""Base class and tools of rewrites: read shapes and constants, add nodes, widen and cut maps."""

from abc import abstractmethod
from collections.abc import Container, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fcn_deploy.graph import static_shape
from fcn_deploy.onnx_file import LARGE_TENSOR_BYTES
from fcn_deploy.regions import Span

SPATIAL_AXES = (2, 3)

Array = npt.NDArray[Any]
Attribute = int | str | Sequence[int]
Window = tuple[Span, Span]


def constant(value: ir.Value | None) -> npt.NDArray[Any] | None:
    """Return the content of a constant value, or None when it is not constant."""
    tensor = ir.convenience.get_const_tensor(value) if value is not None else None
    return tensor.numpy() if tensor is not None else None


def required_constant(value: ir.Value | None) -> Array:
    """Return the content of a constant value; ValueError if it is not constant."""
    found = constant(value)
    if found is None:
        raise ValueError(f"{value.name if value is not None else 'a missing input'} is not constant")
    return found


def constant_ints(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the integers of a constant one-dimensional value, or None when it is not constant."""
    found = constant(value)
    return tuple(int(n) for n in found.ravel()) if found is not None else None


def attribute_ints(node: ir.Node, name: str, default: Sequence[int] = ()) -> tuple[int, ...]:
    """Return an attribute of integers, or `default` when the node has none of that name."""
    return tuple(node.attributes.get_ints(name) or default)


def first_input(node: ir.Node) -> ir.Value:
    """Return the first input of a node; ValueError if it is missing."""
    if not node.inputs or node.inputs[0] is None:
        raise ValueError(f"{node.name} has no first input")
    return node.inputs[0]


def only_reader(value: ir.Value) -> ir.Node | None:
    """Return the node that is the only reader of a value; None if there are others, or the value is an output."""
    uses = value.uses()
    return next(iter(uses)).node if len(uses) == 1 and not value.is_graph_output() else None


def slice_window(node: ir.Node) -> Window | None:
    """Return the window that a Slice keeps; None unless it is static, has step 1, and slices only height and width."""
    if node.op_type != "Slice":
        return None
    shape = static_shape(node.inputs[0]) if node.inputs else None
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


def add_constant(model: ir.Model, name: str, array: Array) -> ir.Value:
    """Add an initializer of that name, or of the first free `name_2`, `name_3`, ..."""
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
    **attributes: Attribute,
) -> ir.Value:
    """Insert a node right after the producer of `place`; return its output, which has the dtype of `place`."""
    producer, graph = place.producer(), place.graph
    if not isinstance(graph, ir.Graph):
        raise ValueError(f"{place.name} belongs to no graph")
    taken = {value.name for node in graph for value in node.outputs} | {value.name for value in graph.inputs}
    free = _free_name(name, taken | set(graph.initializers))
    output = ir.Value(name=free, shape=ir.Shape(shape), type=place.type)
    node = ir.node(operator, inputs, attributes, outputs=[output], name=free)
    if producer is None:
        graph.insert_before(graph[0], node)
    else:
        graph.insert_after(producer, node)
    return output


def reshape_after(model: ir.Model, place: ir.Value, value: ir.Value, shape: Sequence[int], name: str) -> ir.Value:
    """Reshape a value right after the producer of `place`.

    The first axis follows from the others: the batch is part of it, and may be made variable later.
    """
    sizes = add_constant(model, f"{name}/shape", np.array([-1, *shape[1:]], dtype=np.int64))
    return node_after(place, "Reshape", [value, sizes], name, shape)


def window_shape(value: ir.Value, window: Window) -> tuple[int, ...]:
    """Return the shape of a window of a map."""
    shape = static_shape(value) or (1, 1)
    return *shape[:2], window[0].size, window[1].size


def widen(model: ir.Model, value: ir.Value, have: Window, want: Window, *, constants: Array, name: str) -> ir.Value:
    """Surround `value`, the window `have` of a map, with constants up to the window `want`.

    Args:
        model: the model of the map.
        value: the window, N x C x height x width.
        have: the position of `value` in the map.
        want: the window to return; contains `have`.
        constants: 1 x C x height x width of the whole map, valid outside the window.
        name: name of the added nodes.
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
    """Concatenate constants before and behind a map along `axis`, right behind its node; empty sides are left out."""
    before, behind = sides
    shape, place = list(static_shape(value) or ()), value
    made: list[ir.Value] = []
    for side, where in ((before, "before"), (behind, "behind")):
        if made and np.array_equal(before, behind):
            made.append(made[0])
        elif side.shape[axis]:
            made.append(_spread(model, place, side, shape[0], f"{name}/{where}"))
            # Each node is inserted after the previous one, so that the Concat follows all of its inputs.
            place = made[-1] if made[-1].producer() is not None else place
    if not made:
        return value
    shape[axis] += before.shape[axis] + behind.shape[axis]
    made.insert(1 if before.shape[axis] else 0, value)
    return node_after(place, "Concat", made, name, shape, axis=axis)


def _spread(model: ir.Model, place: ir.Value, part: Array, batch: int, name: str) -> ir.Value:
    """Add a constant for every image of the batch; in the file, a moat takes one number per channel."""
    shape = (batch, *part.shape[1:])
    stored = part[:, :, :1, :1] if (part == part[:, :, :1, :1]).all() else part
    if part.nbytes < LARGE_TENSOR_BYTES or stored.shape == shape:
        return add_constant(model, name, np.broadcast_to(part, shape))
    sizes = add_constant(model, f"{name}/shape", np.array(shape, dtype=np.int64))
    return node_after(place, "Expand", [add_constant(model, f"{name}/value", stored), sizes], name, shape)


def cut(model: ir.Model, value: ir.Value, window: Window, name: str) -> ir.Value:
    """Slice `window`, in indices of `value` itself, out of a map after the node that computes it."""
    starts, ends = [span.first for span in window], [span.last + 1 for span in window]
    bounds = {"starts": starts, "ends": ends, "axes": SPATIAL_AXES}
    inputs = [add_constant(model, f"{name}/{what}", np.array(n, dtype=np.int64)) for what, n in bounds.items()]
    return node_after(value, "Slice", [value, *inputs], name, window_shape(value, window))


def replace_value(old: ir.Value, new: ir.Value) -> None:
    """Replace `old` with `new` in all readers and outputs; `new` gets its name."""
    new.name, old.name = old.name, None
    old.replace_all_uses_with(new, replace_graph_outputs=True)


@dataclass(frozen=True)
class Site:
    """The outcome at one occurrence of a pattern."""

    node: str  # name of the node at the place
    applied: bool  # whether it was rewritten
    reason: str  # what the rewrite did there, or why it was skipped


@dataclass
class RewriteResult(ir.passes.PassResult):
    """The result of a rewrite."""

    # every place where the pattern was found, in graph order; empty when it was found nowhere
    sites: tuple[Site, ...] = field(default=())


class Rewrite(ir.passes.InPlacePass):
    """A pass of onnx_ir that finds places, checks each, and rewrites those that pass the check."""

    name: str  # its name in reports
    # whether it changes no sums but their order, so that inner values are compared too, each with its own range
    same_sums: bool = True

    def call(self, model: ir.Model) -> RewriteResult:
        """Rewrite `model` in place wherever the pattern is found and the check passes."""
        sites = []
        for found in self.find(model):
            name, refusal = str(getattr(found, "node", found).name), self.check(found)
            done = self.rewrite(model, found) if refusal is None else None
            sites.append(Site(name, refusal is None, str(done if refusal is None else refusal)))
        return RewriteResult(model, any(site.applied for site in sites), tuple(sites))

    def more_careful(self) -> "Rewrite | None":
        """Return the same rewrite with smaller rounding errors, tried when the graphs differ; None without one."""
        return None

    @abstractmethod
    def find(self, model: ir.Model) -> Sequence[Any]:
        """Return every place where the pattern occurs: a node, a value, or a record with an attribute `node`."""

    @abstractmethod
    def check(self, found: Any) -> str | None:
        """Return why the place is not to be rewritten, or None when it is."""

    @abstractmethod
    def rewrite(self, model: ir.Model, found: Any) -> str:
        """Rewrite the place; returns what was done, in a few words."""
