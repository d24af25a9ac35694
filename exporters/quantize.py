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
# Float weights larger than this are worth keeping as float16.
_LARGE_BYTES = 1_000_000


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
    _store_in_half(copy)
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
    if scale is None:
        return
    for value in dict.fromkeys(v for v in node.inputs if v is not None and is_constant(v)):
        made = _rounded_constant(model, node, value, scale)
        for index in [index for index, given in enumerate(node.inputs) if given is value]:
            node.replace_input_with(index, made)


def _rounded_constant(model: ir.Model, node: ir.Node, value: ir.Value, scale: Scale) -> ir.Value:
    """A constant beside a rounded map: as integers in the file, or rounded where it is spread out."""
    found = constant(value)
    if found is None:
        return _rounded(model, value, scale)[0]
    limits = np.iinfo(scale.zero_point.dtype)
    integers = np.clip(np.rint(found / scale.scale) + scale.zero_point, limits.min, limits.max)
    stored = add_constant(model, f"{value.name}/integers", integers.astype(scale.zero_point.dtype))
    return _dequantized(model, node, [stored, *_parameters(model, value, scale)], str(value.name))


def _rounded(model: ir.Model, value: ir.Value, scale: Scale) -> tuple[ir.Value, Scale]:
    """Quantise and dequantise a value, right behind the node that makes it."""
    parameters, shape = _parameters(model, value, scale), static_shape(value) or ()
    integers = node_after(value, "QuantizeLinear", [value, *parameters], f"{value.name}/quantize", shape)
    integers.type = ir.TensorType(ir.DataType.from_numpy(np.array(scale.zero_point).dtype))
    made = node_after(integers, "DequantizeLinear", [integers, *parameters], f"{value.name}/dequantize", shape)
    made.type = ir.TensorType(ir.DataType.FLOAT)
    return made, scale


def _parameters(model: ir.Model, value: ir.Value, scale: Scale) -> list[ir.Value]:
    return [
        add_constant(model, f"{value.name}/scale", np.array(scale.scale)),
        add_constant(model, f"{value.name}/zero_point", np.array(scale.zero_point)),
    ]


def _dequantized(model: ir.Model, reader: ir.Node, inputs: list[ir.Value], name: str, *how: ir.Attr) -> ir.Value:
    """Integers of the file as floats, right in front of the node that reads them."""
    made = ir.Value(name=f"{name}/float", shape=inputs[0].shape, type=ir.TensorType(ir.DataType.FLOAT))
    node = ir.Node("", "DequantizeLinear", inputs, how, outputs=[made], name=f"{name}/dequantize")
    model.graph.insert_before(reader, node)
    return made


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
    made = _dequantized(model, node, parameters, f"{name}/weight", ir.AttrInt64("axis", 0))
    node.replace_input_with(1, made)


def _store_in_half(model: ir.Model) -> None:
    """Keep large float weights, those of the up-sampling, as float16 in the file; they are computed with in float32.

    Beside 8 bits elsewhere their rounding (2^-11) does not count, and they are a twentieth of the file.
    """
    for node in [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose")]:
        weight = constant(node.inputs[1])
        if weight is None or weight.nbytes < _LARGE_BYTES or np.abs(weight).max() > np.finfo(np.float16).max:
            continue
        stored = add_constant(model, f"{node.name}/weight_half", weight.astype(np.float16))
        made = ir.Value(name=f"{node.name}/weight_float", shape=stored.shape, type=ir.TensorType(ir.DataType.FLOAT))
        to = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
        model.graph.insert_before(node, ir.Node("", "Cast", [stored], to, outputs=[made], name=str(made.name)))
        node.replace_input_with(1, made)


def rounded_weights(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Integers of -127 to 127 and the step of each output channel."""
    steps = np.abs(weight).reshape(len(weight), -1).max(axis=1) / np.float32(_SIGNED)
    steps = np.where(steps > 0, steps, 1).astype(np.float32)
    return np.rint(weight / steps.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8), steps
