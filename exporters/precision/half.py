"""Half precision: the graph in float16 or bfloat16 throughout, with one cast at each end.

The types are explicit on every value (strongly typed), not hints: what the file says is what a runtime computes in.
"""

from collections.abc import Container, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from math import ceil, log2
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.passes.edit import add_constant, constant, node_after, static_shape
from exporters.precision.observe import Activation
from exporters.precision.trunk import (
    activation_of,
    head_nodes,
    is_constant,
    moved_by,
    prologue_nodes,
    source_of,
    trunk_convolutions,
)
from fcn_deploy.choices import Precision
from fcn_deploy.errors import UsageError
from fcn_deploy.model_info import SCALE_KEY

DTYPES = {Precision.FP16: ir.DataType.FLOAT16, Precision.BF16: ir.DataType.BFLOAT16}
# Largest finite values (IEEE 754 binary16; bfloat16 has float32's exponent).
LIMITS = {Precision.FP16: 65504.0, Precision.BF16: 3.3895314e38}


@dataclass(frozen=True)
class HalfReport:
    """What became of a graph in half precision.

    Attributes:
        precision: float16 or bfloat16.
        nodes: how many compute in it.
        float_nodes: how many stayed in float32.
        largest: the largest magnitude of any map on the images it was observed on.
        rescaled: powers of two that layers' outputs are multiplied by, by the layer's name; empty where all fitted.
    """

    precision: Precision
    nodes: int
    float_nodes: int
    largest: float
    rescaled: dict[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """The largest magnitude the type has."""
        return LIMITS[self.precision]

    def to_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        return asdict(self) | {"limit": self.limit}


def in_half(model: ir.Model, precision: Precision, observed: dict[str, Activation]) -> tuple[ir.Model, HalfReport]:
    """`model` with weights and maps in half precision; it is left as it was.

    In bfloat16 the head stays in float32: not every runtime has bfloat16 transposed convolutions, and 8 bits of
    scores decide labels badly.

    Raises:
        UsageError: a weight is beyond the type's limit.
    """
    copy, dtype = model.clone(), DTYPES[precision]
    stays = prologue_nodes(copy) | (head_nodes(copy) if precision is Precision.BF16 else set())
    nodes = [node for node in copy.graph if node not in stays]
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value] = {}
    for node in nodes:
        _convert(copy, node, dtype, LIMITS[precision], casts)
    inside = set(nodes)
    for node in [node for node in copy.graph if node in stays]:
        for index, value in enumerate(node.inputs):
            if value is not None and value.producer() in inside:
                node.replace_input_with(index, _cast(value, ir.DataType.FLOAT, casts))
    _restore_outputs(copy, dtype)
    RemoveUnusedNodesPass()(copy)
    largest = max((a.largest for a in observed.values()), default=0.0)
    return copy, HalfReport(precision, len(nodes), len(stays), largest)


def _convert(
    model: ir.Model,
    node: ir.Node,
    dtype: ir.DataType,
    limit: float,
    casts: dict[tuple[ir.Value, ir.DataType], ir.Value],
) -> None:
    """Give a node constants, inputs and outputs of `dtype` wherever they are of float32."""
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype is not ir.DataType.FLOAT:
            continue
        if value.is_initializer():
            node.replace_input_with(index, _constant_in(model, value, dtype, limit))
        else:
            node.replace_input_with(index, _cast(value, dtype, casts))
    for output in node.outputs:
        if output.dtype is ir.DataType.FLOAT:
            output.type = ir.TensorType(dtype)


def _constant_in(model: ir.Model, value: ir.Value, dtype: ir.DataType, limit: float) -> ir.Value:
    name = f"{value.name}/{dtype.name.lower()}"
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    found = constant(value)
    if found is None:
        raise ValueError(f"{value.name} is no constant")
    largest = float(np.abs(found).max(initial=0))
    if not largest <= limit:
        raise UsageError(
            f"{value.name} reaches {largest:g}; {dtype.name.lower()} ends at {limit:g}",
            remedy="Export it with --precision bf16 or fp32.",
        )
    return add_constant(model, name, found.astype(dtype.numpy()))


def _cast(value: ir.Value, dtype: ir.DataType, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]) -> ir.Value:
    """One cast of a value however many nodes read it."""
    if (value, dtype) not in casts:
        name = f"{value.name}/{dtype.name.lower()}"
        made = node_after(value, "Cast", [value], name, static_shape(value) or (), ir.AttrInt64("to", int(dtype)))
        made.type = ir.TensorType(dtype)
        casts[value, dtype] = made
    return casts[value, dtype]


def _restore_outputs(model: ir.Model, dtype: ir.DataType) -> None:
    """Give outputs that were of float32 back as such, under their names."""
    for index, value in enumerate(model.graph.outputs):
        if value.dtype is dtype:
            name, value.name = str(value.name), f"{value.name}/{dtype.name.lower()}"
            made = _cast(value, ir.DataType.FLOAT, {})
            made.name = name
            model.graph.outputs[index] = made


def observed_names(model: ir.Model, among: Container[str] = ("Conv", "ConvTranspose", "Add")) -> list[str]:
    """The maps that new values arise in; all others hold some of these."""
    return [str(node.outputs[0].name) for node in model.graph if node.op_type in among]


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
