"""Half precision: the graph in float16 or bfloat16 throughout, with one cast at each end.

The types are explicit on every value (strongly typed), not hints: what the file says is what a runtime computes in.
"""

from collections.abc import Container
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.activations import Activation
from exporters.passes.edit import add_constant, node_after
from exporters.passes.static import constant, static_shape
from exporters.trunk import head_nodes, prologue_nodes
from fcn_deploy.errors import UsageError
from fcn_deploy.model_info import Precision

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
