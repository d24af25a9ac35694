"""A graph of a fixed batch made one of any batch, which is what Triton's batching needs."""

import numpy as np
import onnx_ir as ir

from exporters.passes.edit import add_constant
from exporters.passes.static import constant, static_shape
from fcn_deploy.errors import UsageError

_BATCH = "batch"


def with_free_batch(model: ir.Model) -> ir.Model:
    """A copy of `model` whose first dimension may be any number: requests then run as they come together.

    Constants that a rewrite put beside a map, one copy an image, are repeated while the model runs.

    Raises:
        UsageError: the graph holds its batch in another way.
    """
    changed = model.clone()
    graph = changed.graph
    (image,), size = graph.inputs, (static_shape(graph.inputs[0]) or (1,))[0]
    repeated = [value for value in list(graph.initializers.values()) if _is_repeated(value, size)]
    if repeated:
        _repeat_at_run_time(changed, image, repeated)
    for value in (*graph.outputs, *(output for node in graph for output in node.outputs)):
        value.shape = None
    image.shape = ir.Shape([_BATCH, *(image.shape or ())[1:]])
    ir.passes.common.ShapeInferencePass()(changed)
    fixed = [str(value.name) for value in graph.outputs if value.shape is None or str(value.shape[0]) != _BATCH]
    if fixed:
        raise UsageError(
            f"the batch of {fixed[0]} stays fixed at {size}: the graph holds it in a way that is not known here",
            remedy="Pass --backend python, or export with --batch 1.",
        )
    return changed


def _is_repeated(value: ir.Value, batch: int) -> bool:
    """Whether it is a constant beside a map, the same for every image of the batch."""
    array = constant(value)
    if array is None or array.ndim != 4 or array.shape[0] != batch:
        return False
    readers = {use.node.op_type for use in value.uses()}
    return readers == {"Concat"} and bool((array == array[:1]).all())


def _repeat_at_run_time(model: ir.Model, image: ir.Value, values: list[ir.Value]) -> None:
    first = model.graph[0]
    bounds = [ir.AttrInt64("start", 0), ir.AttrInt64("end", 1)]
    size = ir.Node("", "Shape", [image], bounds, outputs=[_sizes("batch/size", 1)])
    ones = add_constant(model, "batch/ones", np.ones(3, dtype=np.int64))
    shape = ir.Node(
        "", "Concat", [size.outputs[0], ones], [ir.AttrInt64("axis", 0)],
        outputs=[_sizes("batch/shape", 4)],
    )  # fmt: skip
    model.graph.insert_before(first, [size, shape])
    for value in values:
        array = constant(value)
        if array is None or value.dtype is None:
            raise ValueError(f"{value.name} is no constant")
        one = add_constant(model, f"{value.name}/one", array[:1])
        output = ir.Value(name=f"{value.name}/batch", type=ir.TensorType(value.dtype))
        model.graph.insert_before(first, ir.Node("", "Expand", [one, shape.outputs[0]], outputs=[output]))
        value.replace_all_uses_with(output)
        model.graph.initializers.pop(str(value.name))


def _sizes(name: str, count: int) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape((count,)), type=ir.TensorType(ir.DataType.INT64))
