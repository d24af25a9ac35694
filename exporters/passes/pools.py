"""Replace a 2x2 pool by the maximum of four maps, for runtimes that lack kernels for pools of some types.

ONNX Runtime's CUDA provider has bfloat16 convolutions from opset 22 on, but pools only before it, and none in bfloat16;
it does have Slice, Concat and Max. The values do not change, because a maximum does not round.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from exporters.passes.edit import (
    SPATIAL_AXES,
    Rewrite,
    add_constant,
    attribute_ints,
    cut,
    first_input,
    node_after,
    only_reader,
    replace_value,
)
from fcn_deploy.graph import static_shape
from fcn_deploy.regions import Span

_WANTED = {"kernel_shape": (2, 2), "strides": (2, 2), "dilations": (1, 1)}


class PoolMaximum(Rewrite):
    """The pixels of every 2x2 cell become four maps by strided Slices, and one Max takes the largest.

    Where a pool rounds its size up (ceil mode, or padding at the end), the last row or column stands in for the missing
    one.
    """

    name = "pool-maximum"

    def find(self, model: ir.Model) -> Sequence[ir.Node]:
        """Return every pool."""
        return [node for node in model.graph if node.op_type == "MaxPool"]

    def check(self, found: ir.Node) -> str | None:
        """Refuse other pools, and maps whose size is not fixed."""
        given = {name: attribute_ints(found, name, (1, 1)) for name in _WANTED}
        strange = [f"{name} {given[name]}" for name, wanted in _WANTED.items() if given[name] != wanted]
        if strange:
            return f"it has {', '.join(strange)}"
        pads = attribute_ints(found, "pads", (0, 0, 0, 0))
        if any(pads[:2]) or max(pads) > 1 or found.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
            return f"it pads by {pads}, not by one pixel at the end at most"
        known = [static_shape(value) for value in (*found.inputs, *found.outputs) if value is not None]
        fixed = len(known) == 2 and all(shape is not None and len(shape) == 4 for shape in known)
        return None if fixed else "its shapes are not fixed, or it also outputs indices"

    def rewrite(self, model: ir.Model, found: ir.Node) -> str:
        """Make the map's size even, slice it, take the largest."""
        name, source, pooled = str(found.name), first_input(found), found.outputs[0]
        shape = static_shape(pooled) or ()
        for axis in SPATIAL_AXES:
            source = _extended(model, source, axis, 2 * shape[axis], f"{name}/extend")
        corners = [_every_second(model, source, first, shape, f"{name}/corner") for first in np.ndindex(2, 2)]
        # Each went right behind the map, so that the first is the last of them.
        replace_value(pooled, node_after(corners[0], "Max", corners, name, shape))
        model.graph.remove(found, safe=True)
        return "replaced by the maximum of four maps"


def _extended(model: ir.Model, value: ir.Value, axis: int, size: int, name: str) -> ir.Value:
    """Repeat the last row or column of a map if it is one short of `size`."""
    shape = list(static_shape(value) or ())
    if shape[axis] >= size:
        return value
    window = [Span(0, shape[other] - 1) for other in SPATIAL_AXES]
    window[SPATIAL_AXES.index(axis)] = Span(shape[axis] - 1, shape[axis] - 1)
    last = cut(model, value, (window[0], window[1]), f"{name}/last")
    shape[axis] = size
    return node_after(last, "Concat", [value, last], name, shape, axis=axis)


def _every_second(model: ir.Model, value: ir.Value, first: Sequence[int], shape: Sequence[int], name: str) -> ir.Value:
    """Take every second pixel along both axes from `first` on, as many as `shape` has."""
    ends = [start + 2 * shape[axis] - 1 for start, axis in zip(first, SPATIAL_AXES, strict=True)]
    bounds = {"starts": first, "ends": ends, "axes": SPATIAL_AXES, "steps": (2, 2)}
    inputs = [add_constant(model, f"{name}/{what}", np.array(n, dtype=np.int64)) for what, n in bounds.items()]
    return node_after(value, "Slice", [value, *inputs], name, shape)


class ReluAfterPool(Rewrite):
    """Relu, MaxPool becomes MaxPool, Relu.

    For runtimes that run a ReLU as a separate node; those that fuse it into the convolution become slower.
    """

    name = "relu-after-pool"

    def find(self, model: ir.Model) -> Sequence[ir.Node]:
        """Return the pools that read a Relu."""
        return [node for node in model.graph if node.op_type == "MaxPool" and _relu_before(node) is not None]

    def check(self, found: ir.Node) -> str | None:
        """Refuse a Relu with other readers, and pools that also output indices."""
        if only_reader(first_input(found)) is None:
            return "the Relu has other readers"
        return "it also outputs indices" if len(found.outputs) > 1 else None

    def rewrite(self, model: ir.Model, found: ir.Node) -> str:
        """Swap the two: the pool reads the input of the Relu, and a new Relu reads the pool."""
        relu, pooled, graph = _relu_before(found), found.outputs[0], model.graph
        if relu is None:
            raise ValueError("the check refuses this place")
        found.replace_input_with(0, first_input(relu))
        made = ir.Value(name=pooled.name, shape=pooled.shape, type=pooled.type)
        pooled.replace_all_uses_with(made, replace_graph_outputs=True)
        behind = ir.node("Relu", [pooled], outputs=[made], name=found.name)
        # The record of the map's window stays with its name.
        behind.metadata_props.update(found.metadata_props)
        found.name = pooled.name = f"{found.name}/before_relu"
        graph.insert_after(found, behind)
        graph.remove(relu, safe=True)
        return f"{relu.name} moved after it"


def _relu_before(pool: ir.Node) -> ir.Node | None:
    node = first_input(pool).producer()
    return node if node is not None and node.op_type == "Relu" else None
