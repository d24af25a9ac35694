"""A graph of a fixed batch made one of any batch, which is what Triton's batching needs.

What holds a batch in this toolkit's graphs are constants that a rewrite put beside a map: one copy an image, stored as
such, or made by an Expand to a constant shape.
"""

from collections.abc import Callable
from functools import cache

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from exporters.passes.edit import add_constant
from exporters.passes.static import constant, constant_ints, static_shape
from fcn_deploy.errors import UsageError

_BATCH = "batch"

# From the sizes behind the batch, to a shape that begins with the batch of the run.
ShapeOf = Callable[[tuple[int, ...]], ir.Value]


def with_free_batch(model: ir.Model) -> ir.Model:
    """A copy of `model` whose first dimension may be any number: requests then run as they come together.

    Raises:
        UsageError: the graph holds its batch in another way.
    """
    changed = model.clone()
    graph = changed.graph
    (image,), batch = graph.inputs, (static_shape(graph.inputs[0]) or (1,))[0]
    stored = [value for value in list(graph.initializers.values()) if _is_repeated(value, batch)]
    expanded = [node for node in graph if _expands_to(node, batch)]
    if stored or expanded:
        front = graph[0]
        shape_of = _shapes(changed, front)
        for value in stored:
            _repeat_stored(changed, value, shape_of, front)
        for node in expanded:
            node.replace_input_with(1, shape_of((constant_ints(node.inputs[1]) or ())[1:]))
    for value in (*graph.outputs, *(output for node in graph for output in node.outputs)):
        value.shape = None
    image.shape = ir.Shape([_BATCH, *(image.shape or ())[1:]])
    ShapeInferencePass()(changed)
    _require_free(changed, batch)
    return changed


def _require_free(model: ir.Model, batch: int) -> None:
    fixed = [str(value.name) for value in model.graph.outputs if value.shape is None or str(value.shape[0]) != _BATCH]
    if fixed:
        raise UsageError(
            f"the batch of {fixed[0]} stays fixed at {batch}: the graph holds it in a way that is not known here",
            remedy="Pass --backend python, or export with --batch 1.",
        )


def _is_repeated(value: ir.Value, batch: int) -> bool:
    """Whether it is a constant beside a map, the same for every image of the batch."""
    array = constant(value)
    if array is None or array.ndim != 4 or array.shape[0] != batch:
        return False
    readers = {use.node.op_type for use in value.uses()}
    return readers == {"Concat"} and bool((array == array[:1]).all())


def _expands_to(node: ir.Node, batch: int) -> bool:
    """Whether it repeats one image's constant for the batch."""
    if node.op_type != "Expand":
        return False
    array, shape = constant(node.inputs[0]), constant_ints(node.inputs[1])
    return array is not None and shape is not None and array.shape[:1] == (1,) and shape[:1] == (batch,)


def _shapes(model: ir.Model, front: ir.Node) -> ShapeOf:
    """Makes shapes at run time, each once, before the node `front`."""
    image = model.graph.inputs[0]
    bounds = [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)]
    size = ir.Node("", "Shape", [image], bounds, outputs=[_sizes("batch/size", 1)], name="batch/size")
    model.graph.insert_before(front, size)

    @cache
    def shape_of(rest: tuple[int, ...]) -> ir.Value:
        name = "batch/" + "x".join(map(str, rest))
        behind = add_constant(model, f"{name}/sizes", np.array(rest, dtype=np.int64))
        axis = [ir.AttrInt64("axis", 0)]
        shape = _sizes(name, len(rest) + 1)
        node = ir.Node("", "Concat", [size.outputs[0], behind], axis, outputs=[shape], name=name)
        model.graph.insert_before(front, node)
        return shape

    return shape_of


def _repeat_stored(model: ir.Model, value: ir.Value, shape_of: ShapeOf, front: ir.Node) -> None:
    array = constant(value)
    if array is None or value.dtype is None:
        raise ValueError(f"{value.name} is no constant")
    one = add_constant(model, f"{value.name}/one", array[:1])
    shape = shape_of(array.shape[1:])
    output = ir.Value(name=f"{value.name}/batch", type=ir.TensorType(value.dtype))
    node = ir.Node("", "Expand", [one, shape], outputs=[output], name=str(output.name))
    model.graph.insert_before(front, node)
    value.replace_all_uses_with(output)
    model.graph.initializers.pop(str(value.name))


def _sizes(name: str, count: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape((count,)), type=ir.TensorType(ir.DataType.INT64))
