"""8-bit integers: static, explicit QuantizeLinear and DequantizeLinear around every convolution of the trunk.

Weights are int8 with a scale per output channel, maps have one scale each from calibration, biases stay in float. The
head (scores and up-sampling) stays in float32 and takes a hundredth of the work.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.activations import Activation
from exporters.calibration import threshold
from exporters.calibration_method import Calibration
from exporters.optimize import Target
from exporters.passes.edit import add_constant, node_after
from exporters.passes.static import constant, static_shape
from exporters.trunk import activation_of, is_constant, source_of, trunk_convolutions

# Largest magnitude of a symmetric int8, and of uint8.
_SIGNED, _UNSIGNED = 127, 255


@dataclass(frozen=True)
class Scale:
    """How a map is rounded: value = scale * (integer - zero point).

    Attributes:
        scale: a step.
        zero_point: the integer of 0; its type is the map's.
    """

    scale: np.float32
    zero_point: np.uint8 | np.int8


def map_scale(found: Activation, method: Calibration, target: Target) -> Scale:
    """The scale of a map.

    ONNX Runtime on a CPU takes maps as uint8, and fuses a ReLU only into those whose zero is 0; TensorRT takes
    symmetric int8 alone.
    """
    limit = threshold(found, method) or 1.0
    if target is not Target.CPU:
        return Scale(np.float32(limit / _SIGNED), np.int8(0))
    # 0 is an integer of its own: paddings are zeros, also around a map that has none.
    low, high = min(max(found.low, -limit), 0.0), max(min(found.high, limit), 0.0)
    step = np.float32((high - low) / _UNSIGNED or 1.0)
    return Scale(step, np.uint8(round(-low / float(step))))


def quantized(model: ir.Model, scales: Mapping[str, Scale], layers: set[str]) -> ir.Model:
    """`model` with the convolutions called `layers` in 8 bits; it is left as it was.

    Args:
        model: in float32.
        scales: of the maps that `sources` names.
        layers: names of trunk convolutions.
    """
    copy = model.clone()
    chosen = {node for node in trunk_convolutions(copy) if node.name in layers}
    rounded: dict[ir.Value, tuple[ir.Value, Scale]] = {}
    roots = {source_of(node.inputs[0]) for node in chosen} | {activation_of(node) for node in chosen}
    for value in copy.graph.inputs:
        if value in roots:
            rounded[value] = _rounded(copy, value, scales[str(value.name)])
    for node in list(copy.graph):
        if node in chosen:
            _quantize_weights(copy, node)
        _read_rounded(copy, node, rounded)
        made = node.outputs[0]
        if made in roots:
            rounded[made] = _rounded(copy, made, scales[str(made.name)])
        elif node.op_type in ("MaxPool", "Concat") and (scale := _scale_of(node, rounded)) is not None:
            rounded[made] = _rounded(copy, made, scale)
    RemoveUnusedNodesPass()(copy)
    return copy


def map_names(model: ir.Model) -> list[str]:
    """All maps that need a scale, in order."""
    convolutions = list(trunk_convolutions(model))
    names = [str(source_of(node.inputs[0]).name) for node in convolutions]
    return list(dict.fromkeys([*names, *(str(activation_of(node).name) for node in convolutions)]))


def _scale_of(node: ir.Node, rounded: Mapping[ir.Value, tuple[ir.Value, Scale]]) -> Scale | None:
    return next((scale for made, scale in rounded.values() if made in node.inputs), None)


def _read_rounded(model: ir.Model, node: ir.Node, rounded: dict[ir.Value, tuple[ir.Value, Scale]]) -> None:
    """Let a node read the rounded versions of its inputs; constants beside a rounded map are rounded like it."""
    for index, value in enumerate(node.inputs):
        if value in rounded and node.op_type != "QuantizeLinear":
            node.replace_input_with(index, rounded[value][0])
    scale = _scale_of(node, rounded) if node.op_type == "Concat" else None
    if scale is not None:
        for index, value in enumerate(node.inputs):
            if value is not None and is_constant(value):
                before = node.inputs[0] if node.inputs[0] is not value else node.inputs[1]
                node.replace_input_with(index, _rounded(model, value, scale, before)[0])


def _rounded(model: ir.Model, value: ir.Value, scale: Scale, behind: ir.Value | None = None) -> tuple[ir.Value, Scale]:
    """Quantise and dequantise a value, right behind the node that makes it, or `behind` another for a constant."""
    place = value if value.producer() is not None or value.is_graph_input() else behind
    if place is None:
        raise ValueError(f"no place behind {value.name}")
    parameters = [
        add_constant(model, f"{value.name}/scale", np.array(scale.scale)),
        add_constant(model, f"{value.name}/zero_point", np.array(scale.zero_point)),
    ]
    shape = static_shape(value) or ()
    integers = node_after(place, "QuantizeLinear", [value, *parameters], f"{value.name}/quantize", shape)
    integers.type = ir.TensorType(ir.DataType.from_numpy(np.array(scale.zero_point).dtype))
    made = node_after(integers, "DequantizeLinear", [integers, *parameters], f"{value.name}/dequantize", shape)
    made.type = ir.TensorType(ir.DataType.FLOAT)
    return made, scale


def _quantize_weights(model: ir.Model, node: ir.Node) -> None:
    weight, image = constant(node.inputs[1]), node.inputs[0]
    if weight is None or image is None:
        raise ValueError(f"{node.name} has no constant weights")
    integers, steps = rounded_weights(weight)
    name = str(node.name)
    parameters = [
        add_constant(model, f"{name}/weight_int8", integers),
        add_constant(model, f"{name}/weight_scale", steps),
        add_constant(model, f"{name}/weight_zero_point", np.zeros(len(steps), np.int8)),
    ]
    made = ir.Value(name=f"{name}/weight", shape=ir.Shape(weight.shape), type=ir.TensorType(ir.DataType.FLOAT))
    axis = ir.AttrInt64("axis", 0)
    model.graph.insert_before(
        node, ir.Node("", "DequantizeLinear", parameters, [axis], outputs=[made], name=f"{name}/weight_dequantize")
    )
    node.replace_input_with(1, made)


def rounded_weights(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers of -127 to 127 and the step of each output channel."""
    steps = np.abs(weight).reshape(len(weight), -1).max(axis=1) / np.float32(_SIGNED)
    steps = np.where(steps > 0, steps, 1).astype(np.float32)
    return np.rint(weight / steps.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8), steps
