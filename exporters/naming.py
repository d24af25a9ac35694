"""Readable names: nodes, values and constants called after the layer they belong to.

`conv1_1`, `pool1`, `fuse_pool4/crop` in place of `node_conv2d_16`: profiles, errors and reports speak in these names.
"""

import ast
from collections import Counter

import onnx
import onnx_ir as ir

_SCOPES = "pkg.torch.onnx.name_scopes"
_EXPORTER_METADATA = ("pkg.torch", "namespace")
_WRAPPER = "network"


def name_after_layers(model: ir.Model) -> None:
    """Rename a freshly exported graph in place after the modules it came from, and drop the exporter's notes."""
    graph = model.graph
    scopes = [_layer_of(node) for node in graph]
    shared, seen = Counter(scopes), Counter[str]()
    for node, scope in zip(graph, scopes, strict=True):
        seen[scope] += 1
        node.name = scope if shared[scope] == 1 else f"{scope}/{node.op_type.lower()}_{seen[scope]}"
    for value in list(graph.initializers.values()):
        value.name = (value.name or "").removeprefix(f"{_WRAPPER}.")
    name_after_nodes(model)
    _drop_notes(model)


def name_after_nodes(model: ir.Model) -> None:
    """Name every inner value after the node that makes it, and every small constant after the node that reads it."""
    graph = model.graph
    for node in graph:
        for output in node.outputs:
            if not output.is_graph_output():
                output.name = node.name
    for node in graph:
        for formal, value in zip(_formal_inputs(node), node.inputs, strict=False):
            if value is not None and value.is_initializer() and _is_first_reader(node, value) and _is_index(value):
                value.name = f"{node.name}/{formal}"


def name_after_outputs(model: ir.Model, names: dict[str, str]) -> None:
    """Name each node after the node that made its first output before a rewrite (`names`: output to node).

    A node the rewrite brought in is named after its reader and its operator.
    """
    for node in reversed(model.graph):
        readers = [use.node.name for use in node.outputs[0].uses()]
        made_up = f"{readers[0]}/{node.op_type.lower()}" if readers else node.name
        node.name = names.get(node.outputs[0].name or "", made_up)
    name_after_nodes(model)


def node_names(model: ir.Model) -> dict[str, str]:
    """Node names by the first output each makes; nodes of one layer that were split share the layer's name."""
    return {node.outputs[0].name or "": (node.name or "").partition("/slice_")[0] for node in model.graph}


def _layer_of(node: ir.Node) -> str:
    """The innermost module of a node, `fuse_pool4/crop`, from the scopes the exporter noted down."""
    scopes = ast.literal_eval(node.metadata_props[_SCOPES])
    # The last scope is the operation itself, the first the wrapper.
    return str(scopes[-2]).removeprefix(f"{_WRAPPER}.").replace(".", "/")


def _is_first_reader(node: ir.Node, value: ir.Value) -> bool:
    return next(iter(value.uses())).node is node


def _is_index(value: ir.Value) -> bool:
    return value.dtype == ir.DataType.INT64


def _formal_inputs(node: ir.Node) -> list[str]:
    schema = onnx.defs.get_schema(node.op_type, node.version or onnx.defs.onnx_opset_version(), node.domain)
    return [formal.name for formal in schema.inputs]


def _drop_notes(model: ir.Model) -> None:
    """The notes hold source paths of the exporting machine and a stack trace per node."""
    holders = [model, model.graph, *model.graph, *(v for node in model.graph for v in node.outputs)]
    for holder in [*holders, *model.graph.inputs, *model.graph.initializers.values()]:
        for key in [k for k in holder.metadata_props if k.startswith(_EXPORTER_METADATA)]:
            del holder.metadata_props[key]
