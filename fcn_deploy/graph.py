"""The contents of a graph: its layers with their map sizes, parameters and multiply-adds."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from math import prod

import onnx
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass, ShapeInferencePass

from fcn_deploy.errors import BundleError
from fcn_deploy.model_info import DIRECT_KEY, FIELD_KEY, LIVE_KEY, TRANSFORM_KEY
from fcn_deploy.onnx_file import split_weights

# Operators whose floating-point constants are trained; those of others (a widened map's frame, a mean) are not.
_TRAINED = frozenset({"Add", "Conv", "ConvTranspose", "BatchNormalization", "Gemm", "MatMul", "PRelu"})
_MOST_DIGITS = 18
_FIELD, _SHARE = re.compile(r"([0-9]{1,9}) ([0-9]{1,9})"), re.compile(r"[01]\.[0-9]{6}")


@dataclass(frozen=True)
class Layer:
    """One node of a graph."""

    name: str  # the node's name
    operator: str  # its ONNX operator
    shape: tuple[int, ...]  # shape of its first output; empty when unknown
    parameters: int  # elements of its trained weights
    # of a convolution or matrix product for the whole batch, padding included; else 0, as for nodes that are computed
    # once, when the model is loaded, because all of their inputs are constant
    multiply_adds: int
    moved_bytes: int  # bytes of its inputs, weights and outputs, each once; unknown ones count as 0, as above
    direct_multiply_adds: int = 0  # what its share of a fast convolution takes as a direct one; else as above
    receptive_field: tuple[int, int] | None = None  # height and width, in pixels of the image; None when unknown
    live: float | None = None  # share of the whole map that depends on the image, 0..1; None when unknown


def layers(model: ir.Model) -> tuple[Layer, ...]:
    """Every node in order, with inferred shapes where none are stated; raises BundleError if shapes contradict."""
    types = _types(model)
    shapes = {name: shape for name, (shape, _) in types.items()}
    sizes = {name: prod(shape) * _bits(dtype) // 8 for name, (shape, dtype) in types.items()}
    constants = _constant_nodes(model)
    return tuple(
        Layer(node.name or "", node.op_type, _shape(node, shapes), 0, 0, 0)
        if node in constants
        else _layer(node, shapes, sizes, constants)
        for node in model.graph
    )


def _constant_nodes(model: ir.Model) -> set[ir.Node]:
    """Return the nodes that compute constants from constants."""
    found: set[ir.Node] = set()
    for node in model.graph:
        makers = [value.producer() for value in node.inputs if value is not None and not value.is_initializer()]
        if node.inputs and all(maker in found for maker in makers) and not subgraphs(node.attributes.values()):
            found.add(node)
    return found


def operator_counts(model: ir.Model) -> dict[str, int]:
    """Count the nodes per operator, most frequent first."""
    return dict(Counter(node.op_type for node in model.graph).most_common())


def infer_shapes(model: ir.Model) -> None:
    """Add the types and shapes that follow from those of the inputs; a model that contradicts itself stays as it is.

    No data are propagated: ONNX would make the tensor of a ConstantOfShape, however large it is.
    """
    ShapeInferencePass(data_prop=False)(model)


def subgraphs(attributes: Iterable[ir.Attr]) -> list[ir.Graph]:
    """Return the graphs among a node's attributes: the branches of an If, the body of a Loop."""
    found: list[ir.Graph] = []
    for attribute in attributes:
        if attribute.type is ir.AttributeType.GRAPH:
            found.append(attribute.as_graph())
        elif attribute.type is ir.AttributeType.GRAPHS:
            found += attribute.as_graphs()
    return found


def _layer(node: ir.Node, shapes: dict[str, tuple[int, ...]], sizes: dict[str, int], constants: set[ir.Node]) -> Layer:
    weights = _trained(node, constants) if node.op_type in _TRAINED else []
    parameters = sum(prod(_known(v)) for v in weights if v.dtype and v.dtype.is_floating_point())
    multiply_adds = _multiply_adds(node, _shape(node, shapes), shapes)
    moved = sum(sizes.get(v.name or "", 0) for v in (*node.inputs, *node.outputs) if v is not None)
    direct = _direct(node, multiply_adds)
    counted = parameters, multiply_adds, moved, direct
    return Layer(node.name or "", node.op_type, _shape(node, shapes), *counted, *_recorded(node))


def _direct(node: ir.Node, multiply_adds: int) -> int:
    if TRANSFORM_KEY in node.metadata_props:
        return 0
    recorded = node.metadata_props.get(DIRECT_KEY, "")
    # Anybody can write metadata: an integer of thousands of digits is none of ours.
    return int(recorded) if recorded.isdecimal() and len(recorded) <= _MOST_DIGITS else multiply_adds


def _recorded(node: ir.Node) -> tuple[tuple[int, int] | None, float | None]:
    """Return what an export recorded of the map that a node computes: receptive field, and live share."""
    found = _FIELD.fullmatch(node.metadata_props.get(FIELD_KEY, ""))
    live = node.metadata_props.get(LIVE_KEY, "")
    field = (int(found[1]), int(found[2])) if found is not None else None
    return field, float(live) if _SHARE.fullmatch(live) else None


def _shape(node: ir.Node, shapes: dict[str, tuple[int, ...]]) -> tuple[int, ...]:
    return shapes.get(node.outputs[0].name or "", ()) if node.outputs else ()


def _trained(node: ir.Node, constants: set[ir.Node]) -> list[ir.Value]:
    """Return the weights of a node, also those that reach it through nodes that compute constants."""
    found: list[ir.Value] = []
    for index, value in enumerate(node.inputs):
        maker = value.producer() if value is not None else None
        if maker in constants:
            found += _trained(maker, constants)
        elif value is not None and value.is_initializer() and node.metadata_props.get(TRANSFORM_KEY) != str(index):
            found.append(value)
    return found


def _multiply_adds(node: ir.Node, output: tuple[int, ...], shapes: dict[str, tuple[int, ...]]) -> int:
    image, weights = (*node.inputs[:2], None, None)[:2]
    if image is None or weights is None:
        return 0
    return multiply_adds(node.op_type, shapes.get(image.name or "", _known(image)), _known(weights), output)


def multiply_adds(
    operator: str, image: Sequence[int], weights: Sequence[int], output: Sequence[int], *, channels_last: bool = False
) -> int:
    """Count the multiply-adds of one node from its shapes, padding included; 0 unless it is a convolution or product.

    Each weight is used once per output position (Conv) or input position (ConvTranspose) of every image. Each element
    of a matrix product is the sum of as many products as the first factor has columns.
    """
    if operator == "MatMul":
        return prod(output) * (image[-1] if image else 0)
    if operator not in ("Conv", "FusedConv", "ConvTranspose"):
        return 0
    batch, *positions = (image if operator == "ConvTranspose" else output) or [0]
    return prod(weights) * batch * prod(positions[:-1] if channels_last else positions[1:])


def static_shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Return the sizes of a value, or None unless all are known."""
    if value is None or value.shape is None or not all(isinstance(size, int) for size in value.shape):
        return None
    return tuple(int(str(size)) for size in value.shape)


def _bits(dtype: ir.DataType) -> int:
    """Return the bits of an element; 0 for strings and unknown types."""
    return 0 if dtype in (ir.DataType.UNDEFINED, ir.DataType.STRING) else dtype.bitwidth


def _known(value: ir.Value) -> tuple[int, ...]:
    shape = value.shape if value.shape is not None else value.const_value and value.const_value.shape
    return tuple(int(n) for n in shape if isinstance(n, int)) if shape else ()


def _types(model: ir.Model) -> dict[str, tuple[tuple[int, ...], ir.DataType]]:
    """Return shape and dtype of every value, including initializers; dtype 0 is unknown."""
    try:
        inferred = onnx.shape_inference.infer_shapes(typed_skeleton(model)).graph
    except (onnx.shape_inference.InferenceError, ValueError) as error:
        raise BundleError(f"the model is not valid: {error}", remedy="Export it again.") from error
    found = {
        value.name: (tuple(d.dim_value for d in tensor.shape.dim), ir.DataType(tensor.elem_type))
        for value in (*inferred.value_info, *inferred.output, *inferred.input)
        for tensor in (value.type.tensor_type,)
    }
    small = {t.name: (tuple(t.dims), ir.DataType(t.data_type)) for t in inferred.initializer}
    return found | small


def prefix(model: ir.Model, names: Sequence[str]) -> ir.Model:
    """Extract the part of `model` that computes the values called `names`; half-precision ones are cast to float32."""
    copy = model.clone()
    values = {value.name: value for node in copy.graph for value in node.outputs}
    copy.graph.outputs[:] = [_widened(copy, values[name]) for name in names]
    RemoveUnusedNodesPass()(copy)
    return copy


def _widened(model: ir.Model, value: ir.Value) -> ir.Value:
    if value.dtype not in (ir.DataType.FLOAT16, ir.DataType.BFLOAT16):
        return value
    made = ir.Value(name=f"{value.name}/float", shape=value.shape, type=ir.TensorType(ir.DataType.FLOAT))
    to = [ir.AttrInt64("to", int(ir.DataType.FLOAT))]
    model.graph.append(ir.Node("", "Cast", [value], to, outputs=[made], name=made.name))
    return made


def typed_skeleton(model: ir.Model) -> onnx.ModelProto:
    """Return the model with each large initializer replaced by an input of the same type and shape.

    Initializers that are inputs already, as all were before IR version 4, stay such. Tools that need only the structure
    (shape inference, the checker, simplifiers) accept it as a complete model.
    """
    skeleton, tensors = split_weights(model)
    stated = {value.name for value in skeleton.graph.input}
    for name, tensor in ((name, tensor) for name, tensor in tensors.items() if name not in stated):
        dtype, shape = int(tensor.dtype), list(tensor.shape.numpy())
        skeleton.graph.input.append(onnx.helper.make_tensor_value_info(name, dtype, shape))
    return skeleton
