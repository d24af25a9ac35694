"""Keeps maps away from a type's limit: layers scaled by powers of two, which a network of ReLUs takes without a change.

relu(s * x) = s * relu(x) for s > 0: a layer's output is scaled by its weights and bias, and scaled back by the weights
of the layers that read it. Powers of two round nothing.
"""

from collections.abc import Iterator, Mapping
from math import ceil, log2

import numpy as np
import onnx_ir as ir

from exporters.activations import Activation
from exporters.passes.edit import add_constant
from exporters.passes.static import constant
from exporters.trunk import MOVING, activation_of, is_constant, source_of, trunk_convolutions
from fcn_deploy.model_info import SCALE_KEY

# Maps may grow by this on images nobody observed.
HEADROOM = 8


def factors(model: ir.Model, observed: Mapping[str, Activation], limit: float) -> dict[str, float]:
    """Powers of two, by the name of the trunk convolution whose output they scale; only those that are not 1.

    Args:
        model: the graph in float32.
        observed: the convolutions' outputs.
        limit: the largest finite value of the type it is to be converted to.
    """
    found = {}
    for node in trunk_convolutions(model):
        largest = observed[str(node.outputs[0].name)].largest
        if largest * HEADROOM > limit and all(reader.op_type == "Conv" for reader in _readers(activation_of(node))):
            found[str(node.name)] = 2.0 ** -ceil(log2(largest * HEADROOM / limit))
    return found


def rescaled(model: ir.Model, by_layer: Mapping[str, float]) -> ir.Model:
    """`model` with the outputs of some trunk convolutions scaled, computing the same; it is left as it was."""
    copy = model.clone()
    scales = {activation_of(node): by_layer.get(str(node.name), 1.0) for node in trunk_convolutions(copy)}
    for output, scale in scales.items():
        maker = output.producer()
        if scale != 1 and maker is not None:
            maker.metadata_props[SCALE_KEY] = f"{scale:g}"
    for node in list(copy.graph):
        if node.op_type == "Conv":
            before = scales.get(source_of(node.inputs[0]), 1.0)
            after = by_layer.get(str(node.name), 1.0)
            _multiply(copy, node, 1, after / before)
            _multiply(copy, node, 2, after)
        elif node.op_type == "Concat":
            scale = scales.get(source_of(node.outputs[0]), 1.0)
            for index, value in enumerate(node.inputs):
                if value is not None and is_constant(value):
                    _multiply_spread(copy, node, index, scale)
    return copy


def _readers(value: ir.Value) -> Iterator[ir.Node]:
    """What reads a map, over whatever moves its values."""
    for use in value.uses():
        if use.node.op_type in MOVING:
            yield from _readers(use.node.outputs[0])
        else:
            yield use.node


def _multiply_spread(model: ir.Model, node: ir.Node, index: int, factor: float) -> None:
    """Multiply a constant input, or what an Expand spreads it from."""
    value = node.inputs[index]
    producer = value.producer() if value is not None else None
    _multiply(model, *((producer, 0) if producer is not None else (node, index)), factor)


def _multiply(model: ir.Model, node: ir.Node, index: int, factor: float) -> None:
    """Let a node read a constant input times `factor`; the weights of the graph before are not written into."""
    value = node.inputs[index] if index < len(node.inputs) else None
    found = constant(value)
    if factor == 1 or value is None or found is None:
        return
    name = f"{value.name}/scaled"
    node.replace_input_with(index, add_constant(model, name, found * np.asarray(factor, found.dtype)))
