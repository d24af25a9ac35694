"""Half precision: the graph in float16 or bfloat16 throughout, with one cast at its input and one at its output.

The types are explicit on every value (strongly typed), not hints: a runtime computes in what the file states.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from math import ceil, log2
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.passes.edit import add_constant, constant, node_after, required_constant
from exporters.precision.observe import (
    Activation,
    Feeds,
    activation_of,
    before_activations,
    is_constant,
    observe,
    rearranged_input,
    runs,
    source_of,
    trunk_convolutions,
)
from fcn_deploy.choices import Precision
from fcn_deploy.errors import UsageError
from fcn_deploy.graph import static_shape
from fcn_deploy.model_info import SCALE_KEY
from fcn_deploy.progress import OnStep, quietly

DTYPES = {Precision.FP16: ir.DataType.FLOAT16, Precision.BF16: ir.DataType.BFLOAT16}
# Largest finite values (IEEE 754 binary16; bfloat16 has float32's exponent).
LIMITS = {Precision.FP16: 65504.0, Precision.BF16: 3.3895314e38}
# Maps may be this many times larger on other images.
HEADROOM = 8
# What these give is within the range of what they read, or within fixed bounds.
_WITHIN_RANGE = frozenset({
    "ArgMax", "AveragePool", "Cast", "Clip", "Concat", "Dropout", "Expand", "Flatten", "Gather", "GlobalAveragePool",
    "GlobalMaxPool", "HardSigmoid", "HardSwish", "Identity", "LeakyRelu", "Max", "MaxPool", "Min", "Pad", "Relu",
    "Reshape", "Resize", "Sigmoid", "Slice", "Softmax", "Split", "Squeeze", "Tanh", "Transpose", "Unsqueeze",
})  # fmt: skip
_IN_HALF = _WITHIN_RANGE | {
    "Add", "BatchNormalization", "Conv", "ConvTranspose", "Div", "Gemm", "Greater", "MatMul", "Mul", "PRelu", "Sub",
}  # fmt: skip


@dataclass(frozen=True)
class HalfReport:
    """How a graph was converted to half precision.

    Attributes:
        precision: float16 or bfloat16.
        nodes: number of nodes that compute in it.
        float_nodes: number of nodes that stayed in float32.
        largest: the largest magnitude of any map on the calibration images.
        rescaled: powers of two by which layers' outputs are multiplied, by layer name; empty when all maps fit.
    """

    precision: Precision
    nodes: int
    float_nodes: int
    largest: float
    rescaled: dict[str, float] = field(default_factory=dict)

    @property
    def limit(self) -> float:
        """Return the largest finite magnitude of the type."""
        return LIMITS[self.precision]

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON."""
        return asdict(self) | {"limit": self.limit}


def convert_to_half(
    model: ir.Model, precision: Precision, feeds: Feeds, on_step: OnStep = quietly
) -> tuple[ir.Model, HalfReport]:
    """Convert a copy of `model`, rescaled where its maps on `feeds` come near the limit of the type.

    Raises:
        UsageError: a weight, or a map that cannot be rescaled, is beyond the limit.
        ParityError: a map has infinities or NaN already in float32.
    """
    names, limit = observed_names(model), LIMITS[precision]
    with on_step(f"observe every layer on {len(feeds)} images", runs(model, names) * len(feeds)) as advance:
        observed = observe(model, names, feeds, advance)
    scales = rescale_factors(model, observed, limit)
    _check_fits(model, observed, scales, limit)
    with on_step(f"convert to {precision}"):
        converted, report = cast_to_half(rescale(model, scales), precision, observed)
    return converted, replace(report, rescaled=scales)


def observed_names(model: ir.Model) -> list[str]:
    """Return the maps with new values: all others are within the range of those that they are made of."""
    early = prologue_nodes(model)
    return [
        str(node.outputs[0].name)
        for node in model.graph
        if node.outputs[0].dtype is ir.DataType.FLOAT and node.op_type not in _WITHIN_RANGE and node not in early
    ]


def rescale_factors(model: ir.Model, observed: Mapping[str, Activation], limit: float) -> dict[str, float]:
    """Return powers of two other than 1, by the trunk convolution whose output they bring below `limit`."""
    found = {}
    for node in trunk_convolutions(model):
        largest = observed[str(node.outputs[0].name)].largest
        if largest * HEADROOM > limit and _only_convolutions_read(activation_of(node)):
            found[str(node.name)] = 2.0 ** -ceil(log2(largest * HEADROOM / limit))
    return found


def _check_fits(
    model: ir.Model, observed: Mapping[str, Activation], by_layer: Mapping[str, float], limit: float
) -> None:
    """Refuse maps beyond the limit that cannot be rescaled, such as scores."""
    for node in model.graph:
        name, found = str(node.outputs[0].name), observed.get(str(node.outputs[0].name))
        if found is not None and found.largest * by_layer.get(str(node.name), 1.0) > limit:
            raise UsageError(
                f"{name} reaches {found.largest:g} and cannot be rescaled; the limit of the type is {limit:g}",
                remedy="Pass --precision bf16 or fp32.",
            )


def _only_convolutions_read(value: ir.Value) -> bool:
    """Return whether every reader of a map can scale it back, also behind nodes that only move its values."""
    if value.is_graph_output():
        return False
    readers = [use.node for use in value.uses()]
    return all(n.op_type == "Conv" or (rearranged_input(n) and _only_convolutions_read(n.outputs[0])) for n in readers)


def rescale(model: ir.Model, by_layer: Mapping[str, float]) -> ir.Model:
    """Scale the outputs of some trunk convolutions in a copy of `model`, and scale back where they are read."""
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
            # One Expand may serve both sides of a map.
            for holder, index in _constant_inputs(node):
                _multiply(copy, holder, index, scale)
    return copy


def _constant_inputs(node: ir.Node) -> Iterable[tuple[ir.Node, int]]:
    """Find the constants of a Concat: its own inputs, or those of the Expands that spread them, each once."""
    found = [(v.producer(), i) for i, v in enumerate(node.inputs) if v is not None and is_constant(v)]
    return dict.fromkeys((maker, 0) if maker is not None else (node, index) for maker, index in found)


def _multiply(model: ir.Model, node: ir.Node, index: int, factor: float) -> None:
    """Multiply a constant input of a node by `factor`, in a new constant: weights are shared with other graphs."""
    value = node.inputs[index] if index < len(node.inputs) else None
    found = constant(value)
    if factor == 1 or value is None or found is None:
        return
    name = f"{value.name}/scaled"
    node.replace_input_with(index, add_constant(model, name, found * np.asarray(factor, found.dtype)))


def cast_to_half(model: ir.Model, precision: Precision, observed: dict[str, Activation]) -> tuple[ir.Model, HalfReport]:
    """Convert the weights and maps of a copy of `model` to half precision.

    In bfloat16 the head stays in float32: not every runtime has bfloat16 transposed convolutions, and 8 bits of
    scores decide labels badly. Operators that few runtimes have in half precision stay in float32, too.

    Raises:
        UsageError: a weight is beyond the type's limit.
    """
    copy, dtype = model.clone(), DTYPES[precision]
    stays = prologue_nodes(copy) | (head_nodes(copy) if precision is Precision.BF16 else set())
    stays |= {node for node in copy.graph if not _fits_half(node)}
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
    """Convert the float32 constants, inputs and outputs of a node to `dtype`."""
    kinds = _kinds_of_inputs(node)
    for index, value in enumerate(node.inputs):
        if value is None or value.dtype is not ir.DataType.FLOAT or kinds[index] != kinds[0]:
            continue
        fixed = value.is_initializer()
        made = _constant_in(model, value, dtype, limit) if fixed else _cast(value, dtype, casts)
        node.replace_input_with(index, made)
    for output in node.outputs:
        if output.dtype is ir.DataType.FLOAT:
            output.type = ir.TensorType(dtype)


def _fits_half(node: ir.Node) -> bool:
    """Return whether runtimes compute an operator in half precision; a Cast to float32 is meant as such."""
    to_float = node.op_type == "Cast" and node.outputs[0].dtype is ir.DataType.FLOAT
    return not node.domain and node.op_type in _IN_HALF and not to_float


def _kinds_of_inputs(node: ir.Node) -> list[str]:
    """Return the type variable of each input in ONNX's schema: those of the first are the maps and weights."""
    version = node.version or onnx.defs.onnx_opset_version()
    formals = [formal.type_str for formal in onnx.defs.get_schema(node.op_type, version).inputs]
    return [formals[min(index, len(formals) - 1)] for index in range(len(node.inputs))]


def _constant_in(model: ir.Model, value: ir.Value, dtype: ir.DataType, limit: float) -> ir.Value:
    name = f"{value.name}/{dtype.name.lower()}"
    if name in model.graph.initializers:
        return model.graph.initializers[name]
    found = required_constant(value)
    largest = float(np.abs(found).max(initial=0))
    if not largest <= limit:
        raise UsageError(
            f"{value.name} reaches {largest:g}; the limit of {dtype.name.lower()} is {limit:g}",
            remedy="Pass --precision bf16 or fp32.",
        )
    return add_constant(model, name, found.astype(dtype.numpy()))


def _cast(value: ir.Value, dtype: ir.DataType, casts: dict[tuple[ir.Value, ir.DataType], ir.Value]) -> ir.Value:
    """Cast a value once, however many nodes read it."""
    if (value, dtype) not in casts:
        name = f"{value.name}/{dtype.name.lower()}"
        made = node_after(value, "Cast", [value], name, static_shape(value) or (), to=int(dtype))
        made.type = ir.TensorType(dtype)
        casts[value, dtype] = made
    return casts[value, dtype]


def _restore_outputs(model: ir.Model, dtype: ir.DataType) -> None:
    """Cast outputs that were float32 back to it, under their names."""
    for index, value in enumerate(model.graph.outputs):
        if value.dtype is dtype:
            name, value.name = str(value.name), f"{value.name}/{dtype.name.lower()}"
            made = _cast(value, ir.DataType.FLOAT, {})
            made.name = name
            model.graph.outputs[index] = made


def head_nodes(model: ir.Model) -> set[ir.Node]:
    """Find the head: convolutions and products that no activation follows, and everything behind them.

    Its sums of few large scores decide the labels, and take a hundredth of the work.
    """
    found: set[ir.Node] = set()
    trunk = before_activations(model)
    for node in model.graph:
        behind = any(value is not None and value.producer() in found for value in node.inputs)
        scores = node.op_type in ("Conv", "ConvTranspose", "MatMul", "Gemm") and node not in trunk
        if behind or scores:
            found.add(node)
    return found


def prologue_nodes(model: ir.Model) -> set[ir.Node]:
    """Find what precedes the first convolution and its padding: what makes an image of pixels."""
    found: set[ir.Node] = set()
    for node in model.graph:
        made_from = [v for v in node.inputs if v is not None and not v.is_initializer()]
        early = made_from and all(v.is_graph_input() or v.producer() in found for v in made_from)
        if early and node.op_type in ("Cast", "Mul", "Sub", "Div", "Transpose"):
            found.add(node)
    return found
