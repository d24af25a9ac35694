"""Turn the constants around a map into zero padding of the convolution that reads them.

Where every pixel around a map x has one value c per channel, a convolution of both is that of x - c padded with zeros,
plus the sum of its weights times c, which goes into its bias. The subtraction goes into the bias and the ReLU that make
x, where they do nothing else: relu(y + b) - c = max(y + (b - c), -c).
"""

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from exporters.passes.edit import (
    Array,
    add_constant,
    attribute_ints,
    constant,
    first_input,
    node_after,
    only_reader,
    required_constant,
)
from fcn_deploy.graph import static_shape

_AXES = (3, 2)


@dataclass(frozen=True)
class ConstantFrame:
    """A map, and the constants around it."""

    value: ir.Value  # N x C x H x W
    constants: Array  # 1 x C x 1 x 1
    pads: tuple[int, int, int, int]  # how far they reach: top, left, bottom, right


def use_zero_frame(model: ir.Model, node: ir.Node) -> bool:
    """Rewrite a convolution with a bias whose input is a map within constants; returns whether that was possible."""
    found = _constant_frame(node)
    if found is None or len(node.inputs) < 3 or node.inputs[2] is None:
        return False
    weight, bias = required_constant(node.inputs[1]), required_constant(node.inputs[2])
    sums = weight.sum(axis=(2, 3), dtype=np.float64) @ found.constants.ravel().astype(np.float64)
    node.replace_input_with(2, add_constant(model, f"{node.name}/bias_in_frame", (bias + sums).astype(bias.dtype)))
    node.replace_input_with(0, _shifted(model, found, str(node.name)))
    node.attributes.add(ir.AttrInt64s("pads", found.pads))
    return True


def _constant_frame(node: ir.Node) -> ConstantFrame | None:
    """Return the map that a convolution without padding reads through one Concat per axis, which nobody else reads."""
    if any(attribute_ints(node, "pads")):
        return None
    value, constants, sizes = first_input(node), [], {}
    for axis in reversed(_AXES):
        concat = value.producer()
        if concat is None or concat.op_type != "Concat" or concat.attributes.get_int("axis", 0) != axis:
            sizes[axis] = (0, 0)
            continue
        split = _split(concat, axis)
        if split is None or only_reader(value) is None:
            return None
        value, sides, sizes[axis] = split
        constants += sides
    if not constants or any(not np.array_equal(one, constants[0]) for one in constants):
        return None
    shape = static_shape(value)
    if shape is None or constants[0].shape != (1, shape[1], 1, 1):
        return None
    (left, right), (top, bottom) = sizes[3], sizes[2]
    return ConstantFrame(value, constants[0], (top, left, bottom, right))


def _split(concat: ir.Node, axis: int) -> tuple[ir.Value, list[Array], tuple[int, int]] | None:
    """Return the only computed input of a Concat, and value and size of the constants before and behind it."""
    sides = [_uniform(value) for value in concat.inputs]
    computed = [index for index, side in enumerate(sides) if side is None]
    value = concat.inputs[computed[0]] if len(computed) == 1 else None
    shapes = [shape for given in concat.inputs if (shape := static_shape(given)) is not None]
    if value is None or len(shapes) != len(sides):
        return None
    before, behind = shapes[: computed[0]], shapes[computed[0] + 1 :]
    reach = sum(shape[axis] for shape in before), sum(shape[axis] for shape in behind)
    return value, [side for side in sides if side is not None], reach


def _uniform(value: ir.Value | None) -> Array | None:
    """Return 1 x C x 1 x 1 if a value is a constant of one number per channel, also when a node expands it."""
    maker = value.producer() if value is not None else None
    found = constant(maker.inputs[0] if maker is not None and maker.op_type == "Expand" else value)
    if found is None or found.ndim != 4:
        return None
    one = found[:1, :, :1, :1]
    return one if (found == one).all() else None


def _shifted(model: ir.Model, frame: ConstantFrame, name: str) -> ir.Value:
    """Return the map less the constants."""
    value, shape = frame.value, static_shape(frame.value) or ()
    relu = value.producer()
    added = first_input(relu).producer() if relu is not None and relu.op_type == "Relu" else None
    bias = constant(added.inputs[1]) if added is not None and added.op_type == "Add" else None
    alone = only_reader(value) is not None and added is not None and only_reader(added.outputs[0]) is relu
    alone = alone and relu is not None and relu.graph is value.graph
    if relu is None or added is None or bias is None or bias.shape != frame.constants.shape or not alone:
        return node_after(
            value,
            "Sub",
            [value, add_constant(model, f"{name}/frame", frame.constants)],
            f"{name}/input_less_frame",
            shape,
        )
    added.replace_input_with(1, add_constant(model, f"{added.name}/bias_less_frame", bias - frame.constants))
    # They no longer hold the maps of their layers.
    added.name = added.outputs[0].name = f"{added.name}/less_frame"
    least = add_constant(model, f"{relu.name}/least", -frame.constants)
    return node_after(added.outputs[0], "Max", [added.outputs[0], least], f"{relu.name}/less_frame", shape)
