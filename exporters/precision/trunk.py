"""Where a graph's trunk ends and its head begins: reduced precision treats the two differently."""

from collections.abc import Iterator
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from exporters.passes.edit import constant
from fcn_deploy.errors import UsageError

_ROUNDED = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8})


def require_float32(model: ir.Model) -> None:
    """Refuse a graph whose precision is reduced already.

    Raises:
        UsageError: names what was found.
    """
    reduced = [v.name for v in model.graph.initializers.values() if v.dtype in _ROUNDED]
    reduced += [n.name for n in model.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv")]
    if reduced:
        raise UsageError(
            f"the graph is in reduced precision already: {reduced[0]}", remedy="Reduce the float32 graph instead."
        )


def head_nodes(model: ir.Model) -> set[ir.Node]:
    """The scores and everything behind them: convolutions that no Relu follows, and what reads them.

    Sums of few large scores decide about labels, and take a hundredth of the work.
    """
    found: set[ir.Node] = set()
    for node in model.graph:
        behind = any(value is not None and value.producer() in found for value in node.inputs)
        scores = node.op_type in ("Conv", "ConvTranspose") and not is_activated(node)
        if behind or scores:
            found.add(node)
    return found


def prologue_nodes(model: ir.Model) -> set[ir.Node]:
    """What stands before the first convolution and its padding: the casts and sums that make an image of pixels."""
    found: set[ir.Node] = set()
    for node in model.graph:
        made_from = [v for v in node.inputs if v is not None and not v.is_initializer()]
        early = made_from and all(v.is_graph_input() or v.producer() in found for v in made_from)
        if early and node.op_type in ("Cast", "Sub", "Transpose"):
            found.add(node)
    return found


def is_activated(node: ir.Node) -> bool:
    """Whether one Relu is all that reads a node's output, perhaps behind a pool that nothing else reads."""
    return _relu_behind(node) is not None


def trunk_convolutions(model: ir.Model) -> Iterator[ir.Node]:
    """The convolutions that a Relu follows, in order."""
    return (node for node in model.graph if node.op_type == "Conv" and is_activated(node))


def activation_of(convolution: ir.Node) -> ir.Value:
    """What the Relu behind a trunk convolution gives."""
    relu = _relu_behind(convolution)
    if relu is None:
        raise ValueError(f"no Relu follows {convolution.name} alone")
    return relu.outputs[0]


def _relu_behind(node: ir.Node) -> ir.Node | None:
    readers = [use.node for use in node.outputs[0].uses()]
    if len(readers) != 1 or node.outputs[0].is_graph_output():
        return None
    if readers[0].op_type == "MaxPool":
        return _relu_behind(readers[0])
    return readers[0] if readers[0].op_type == "Relu" else None


def source_of(value: ir.Value | None) -> ir.Value:
    """The map whose values `value` holds: followed back over pools, slices, and constants put around."""
    if value is None:
        raise ValueError("a node without its first input")
    node = value.producer()
    before = moved_by(node) if node is not None else None
    return value if before is None else source_of(before)


def moved_by(node: ir.Node) -> ir.Value | None:
    """The one map whose values a node gives at other places, perhaps with constants around them; None if it does not.

    A Concat of several maps makes a new one: they need not have one scale.
    """
    if node.op_type in ("MaxPool", "Slice"):
        return node.inputs[0]
    maps = [value for value in node.inputs if value is not None and not is_constant(value)]
    return maps[0] if node.op_type == "Concat" and len(maps) == 1 else None


def is_constant(value: ir.Value) -> bool:
    """Whether a value is an initializer, or one that is spread out."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Expand" else None
    return value.is_initializer() or (source is not None and is_constant(source))


def constants_beside(model: ir.Model) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """The constants that are put around maps, each with the name of the map whose values it stands beside."""
    for node in model.graph:
        if node.op_type != "Concat" or moved_by(node) is None:
            continue
        for value in dict.fromkeys(v for v in node.inputs if v is not None and is_constant(v)):
            spread = value.producer()
            found = constant(spread.inputs[0] if spread is not None else value)
            if found is not None:
                yield str(source_of(node.outputs[0]).name), found
