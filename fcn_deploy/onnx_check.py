"""Checks what every reader of an ONNX model relies on: text, tensors as long as their shapes, values that are made.

Neither protobuf nor ONNX's own tools check this for a model whose weights stay in the file, and some of them crash on
it. Everything here looks at the protobuf message alone; no data are read.
"""

from collections.abc import Container, Iterator, Sequence
from graphlib import CycleError, TopologicalSorter
from itertools import chain
from math import prod
from typing import Any

import onnx

from fcn_deploy.errors import BundleError

_AGAIN = "Export the model again, or repair it with the tool that wrote it."
# ONNX's shape inference follows every call; functions that each call the next one twice take it for ever.
MAX_CALLED_NODES = 100_000
_Function = tuple[str, str]  # domain and name
_COMPLEX = (onnx.TensorProto.COMPLEX64, onnx.TensorProto.COMPLEX128)
# NumPy stores each element of these types in a byte of its own; tensors pack them.
_PACKED = {"UINT4": 4, "INT4": 4, "FLOAT4E2M1": 4, "UINT2": 2, "INT2": 2, "FLOAT6E2M3": 6, "FLOAT6E3M2": 6}
_PACKED_BITS = {number: _PACKED[name] for name, number in onnx.TensorProto.DataType.items() if name in _PACKED}


def invalid(problem: str) -> BundleError:
    """Return the error for a model that means nothing."""
    return BundleError(problem, remedy=_AGAIN)


def check_model(model: onnx.ModelProto, source: str) -> None:
    """Check a model's text, tensors, functions, and that every value it reads is made; `source` names it in errors.

    Raises:
        BundleError: names the node, the tensor or the function.
    """
    _check_text(model, source)
    for tensor in tensors(model):
        check_tensor(tensor, source)
    _check_functions(model, source)
    for function in model.functions:
        _check_nodes(function.node, set(function.input), f"{source}, function {function.name}")
    graph = model.graph
    sparse = [tensor.values.name for tensor in graph.sparse_initializer]
    if sparse:
        raise BundleError(f"{source}: initializer {sparse[0]!r} is sparse", remedy="Store it as a dense tensor.")
    _check_graph(graph, set(), source)
    stored = {tensor.name for tensor in graph.initializer}
    ends = {"inputs": [v for v in graph.input if v.name not in stored], "outputs": list(graph.output)}
    for kind, values in ends.items():
        if not values:
            raise invalid(f"{source}: the graph has no {kind}; it needs at least one")


def is_sorted(graph: onnx.GraphProto) -> bool:
    """Return whether every node comes after those whose values it reads."""
    return all(before < after for after, found in _dependencies(graph.node).items() for before in found)


def tensors(message: Any) -> Iterator[onnx.TensorProto]:
    """Yield every dense tensor in a message, those of attributes, subgraphs and functions too."""
    for field, value in message.ListFields():
        if field.message_type is None:
            continue
        for part in value if field.is_repeated else (value,):
            if isinstance(part, onnx.TensorProto):
                yield part
            elif not isinstance(part, onnx.SparseTensorProto):
                yield from tensors(part)


def tensor_bytes(tensor: onnx.TensorProto, source: str) -> int:
    """Return the bytes that a tensor's shape and type need; raises BundleError when they mean nothing."""
    if min(tensor.dims, default=0) < 0:
        raise invalid(f"{source}: tensor {tensor.name!r} has the shape {shape_text(tensor.dims)}; sizes are at least 0")
    bits = element_bits(tensor.data_type)
    if bits is None:
        raise invalid(
            f"{source}: tensor {tensor.name!r} has type {tensor.data_type}, whose elements have no known size"
        )
    elements: int = prod(tensor.dims)
    return (elements * bits + 7) // 8


def element_bits(data_type: int) -> int | None:
    """Return the bits of an element of a tensor; None for strings and for numbers that stand for no type."""
    if data_type in _PACKED_BITS:
        return _PACKED_BITS[data_type]
    try:
        dtype = onnx.helper.tensor_dtype_to_np_dtype(data_type)
    except KeyError:
        return None
    return dtype.itemsize * 8 if not dtype.hasobject else None


def check_tensor(tensor: onnx.TensorProto, source: str) -> None:
    """Check that a tensor that holds its own data has as many as its shape says; raises BundleError with its name."""
    if tensor.data_location == onnx.TensorProto.EXTERNAL:
        return
    if tensor.data_type == onnx.TensorProto.STRING:
        _compare(tensor, len(tensor.string_data), prod(tensor.dims), "strings", source)
        return
    needed = tensor_bytes(tensor, source)
    if tensor.HasField("raw_data"):
        _compare(tensor, len(tensor.raw_data), needed, "bytes", source)
        return
    # One number is stored per element, two per complex one; elements of 2 and 4 bits are packed into bytes.
    per_element = 2 if tensor.data_type in _COMPLEX else 1
    numbers = needed if element_bits(tensor.data_type) in (2, 4) else prod(tensor.dims) * per_element
    field = onnx.helper.tensor_dtype_to_field(tensor.data_type)
    _compare(tensor, len(getattr(tensor, field)), numbers, "numbers", source)


def _compare(tensor: onnx.TensorProto, found: int, needed: int, unit: str, source: str) -> None:
    if found != needed:
        raise invalid(
            f"{source}: tensor {tensor.name!r} has {found} {unit}; its shape {shape_text(tensor.dims)} needs {needed}"
        )


def shape_text(sizes: Sequence[int]) -> str:
    """Return a shape as text, e.g. `1x3x500x500`."""
    return "x".join(str(size) for size in sizes) or "of a single number"


def _check_text(message: Any, source: str) -> None:
    """Check that all text is UTF-8: protobuf returns bytes where it is not."""
    for field, value in message.ListFields():
        parts = value if field.is_repeated else (value,)
        if field.message_type is not None:
            for part in parts:
                _check_text(part, source)
        elif field.type == field.TYPE_STRING:
            for part in parts:
                if not isinstance(part, str):
                    raise invalid(f"{source}: {field.name} {part!r} is not UTF-8")


def _check_functions(model: onnx.ModelProto, source: str) -> None:
    """Check that no function calls itself, directly or through others, and how many nodes all calls stand for."""
    bodies = {(function.domain, function.name): function.node for function in model.functions}
    calls = {key: _calls(nodes, bodies) for key, nodes in bodies.items()}
    sizes: dict[_Function, int] = {}
    try:
        for key in TopologicalSorter(calls).static_order():  # those that are called come first
            sizes[key] = len(list(_all_nodes(bodies[key]))) + sum(sizes[called] for called in calls[key])
    except CycleError as error:
        names = " calls ".join(name for _, name in reversed(error.args[1]))
        raise invalid(f"{source}: a function calls itself: {names}") from error
    total = sum(sizes[called] for called in _calls(model.graph.node, bodies))
    if total > MAX_CALLED_NODES:
        raise invalid(f"{source}: its functions stand for {total} nodes; at most {MAX_CALLED_NODES} are read")


def _calls(nodes: Sequence[onnx.NodeProto], known: Container[_Function]) -> list[_Function]:
    """Return the functions that nodes call, once per call."""
    return [(node.domain, node.op_type) for node in _all_nodes(nodes) if (node.domain, node.op_type) in known]


def _all_nodes(nodes: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    for node in nodes:
        yield node
        for graph in _subgraphs(node):
            yield from _all_nodes(graph.node)


def _subgraphs(node: onnx.NodeProto) -> list[onnx.GraphProto]:
    found = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    return found + list(chain.from_iterable(attribute.graphs for attribute in node.attribute))


def _check_graph(graph: onnx.GraphProto, outer: set[str], source: str) -> None:
    """Check a graph that may also read the values of `outer`."""
    stored = {tensor.name for tensor in graph.initializer} | {t.values.name for t in graph.sparse_initializer}
    known = _check_nodes(graph.node, outer | stored | {value.name for value in graph.input}, source)
    for value in graph.output:
        if value.name not in known:
            raise invalid(f"{source}: nothing makes output {value.name!r}")


def _check_nodes(nodes: Sequence[onnx.NodeProto], given: set[str], source: str) -> set[str]:
    """Check that every value which nodes read is `given` or made by one of them; returns the names of all."""
    known = given | {name for node in nodes for name in node.output if name}
    for node in nodes:
        for name in node.input:
            if name and name not in known:
                raise invalid(f"{source}: node {node_text(node)} reads {name!r}, which nothing makes")
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.UNDEFINED:
                raise invalid(f"{source}: attribute {attribute.name!r} of node {node_text(node)} has no type")
        for graph in _subgraphs(node):
            _check_graph(graph, known, source)
    try:
        TopologicalSorter(_dependencies(nodes)).prepare()
    except CycleError as error:
        names = " reads ".join(node_text(nodes[index]) for index in reversed(error.args[1]))
        raise invalid(f"{source}: the graph has a cycle: {names}") from error
    return known


def _dependencies(nodes: Sequence[onnx.NodeProto]) -> dict[int, set[int]]:
    """Return, by a node's index, the indices of the nodes whose values it, or a subgraph of it, reads."""
    makers = {name: index for index, node in enumerate(nodes) for name in node.output if name}
    return {index: {makers[name] for name in _read_by(node) if name in makers} for index, node in enumerate(nodes)}


def _read_by(node: onnx.NodeProto) -> Iterator[str]:
    yield from node.input
    for graph in _subgraphs(node):
        own = {value.name for value in graph.input} | {name for inner in graph.node for name in inner.output}
        own |= {tensor.name for tensor in graph.initializer}
        read = chain((v.name for v in graph.output), chain.from_iterable(_read_by(inner) for inner in graph.node))
        yield from (name for name in read if name not in own)


def node_text(node: onnx.NodeProto) -> str:
    """Return what a node is called in messages: its name, or its operator and first output."""
    return node.name or f"{node.op_type} of {next(iter(node.output), 'nothing')!r}"
