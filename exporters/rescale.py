"""Keeps maps away from a type's limit: layers scaled by powers of two, which a network of ReLUs takes without a change.

relu(s * x) = s * relu(x) for s > 0: a layer's output is scaled by its weights and bias, and scaled back by the weights
of the layers that read it. Powers of two round nothing.
"""

from collections.abc import Iterable, Mapping
from math import ceil, log2

import numpy as np
import onnx_ir as ir

from exporters.activations import Activation
from exporters.passes.edit import add_constant
from exporters.passes.static import constant
from exporters.trunk import activation_of, is_constant, moved_by, source_of, trunk_convolutions
from fcn_deploy.errors import UsageError
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
        if largest * HEADROOM > limit and _only_convolutions_read(activation_of(node)):
            found[str(node.name)] = 2.0 ** -ceil(log2(largest * HEADROOM / limit))
    return found


def require_fitting(
    model: ir.Model, observed: Mapping[str, Activation], by_layer: Mapping[str, float], limit: float
) -> None:
    """Refuse maps that are beyond a type's limit where nothing can be scaled back, as scores.

    Raises:
        UsageError: names the map.
    """
    for node in model.graph:
        name, found = str(node.outputs[0].name), observed.get(str(node.outputs[0].name))
        if found is not None and found.largest * by_layer.get(str(node.name), 1.0) > limit:
            raise UsageError(
                f"{name} reaches {found.largest:g} and cannot be scaled; the type ends at {limit:g}",
                remedy="Export it with --precision bf16 or fp32.",
            )


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
            # One Expand may stand on both sides of a map.
            for holder, index in _spreads(node):
                _multiply(copy, holder, index, scale)
    return copy


def _only_convolutions_read(value: ir.Value) -> bool:
    """Whether every reader of a map, over whatever moves its values, can scale it back."""
    if value.is_graph_output():
        return False
    readers = [use.node for use in value.uses()]
    return all(n.op_type == "Conv" or (moved_by(n) and _only_convolutions_read(n.outputs[0])) for n in readers)


def _spreads(node: ir.Node) -> Iterable[tuple[ir.Node, int]]:
    """Where the constants of a Concat stand: its own inputs, or those of the Expands that spread them, each once."""
    found = [(v.producer(), i) for i, v in enumerate(node.inputs) if v is not None and is_constant(v)]
    return dict.fromkeys((maker, 0) if maker is not None else (node, index) for maker, index in found)


def _multiply(model: ir.Model, node: ir.Node, index: int, factor: float) -> None:
    """Let a node read a constant input times `factor`; the weights of the graph before are not written into."""
    value = node.inputs[index] if index < len(node.inputs) else None
    found = constant(value)
    if factor == 1 or value is None or found is None:
        return
    name = f"{value.name}/scaled"
    node.replace_input_with(index, add_constant(model, name, found * np.asarray(factor, found.dtype)))
