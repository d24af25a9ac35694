"""A ReLU behind the pool that reads it, where it is a pass over memory of its own: the map is a quarter there.

max(relu(a), relu(b)) = relu(max(a, b)), because a ReLU never falls; neither rounds anything, so this is exact.
"""

from collections.abc import Sequence

import onnx_ir as ir

from exporters.passes.base import Rewrite


class ReluAfterPool(Rewrite):
    """The pass: Relu, MaxPool becomes MaxPool, Relu.

    For runtimes that run a ReLU as a node of its own. Others run it within the convolution, and lose by this.
    """

    name = "relu-after-pool"
    pattern = "a Relu that a MaxPool reads"

    def find(self, model: ir.Model) -> Sequence[ir.Node]:
        """The pools that read a Relu."""
        return [node for node in model.graph if node.op_type == "MaxPool" and _relu_before(node) is not None]

    def check(self, found: ir.Node) -> str | None:
        """Refuse where others read the Relu too, and pools that also say where the largest was."""
        relu = _relu_before(found)
        if relu is None or len(relu.outputs[0].uses()) > 1 or relu.outputs[0].is_graph_output():
            return "others read the Relu too"
        return "it gives indices besides" if len(found.outputs) > 1 else None

    def rewrite(self, model: ir.Model, found: ir.Node) -> str:
        """Let the pool read what the Relu read, and a new Relu read the pool."""
        relu, pooled, graph = _relu_before(found), found.outputs[0], model.graph
        if relu is None or relu.inputs[0] is None:
            raise ValueError("a place that was refused")
        found.replace_input_with(0, relu.inputs[0])
        made = ir.Value(name=pooled.name, shape=pooled.shape, type=pooled.type)
        pooled.replace_all_uses_with(made, replace_graph_outputs=True)
        behind = ir.Node("", "Relu", [pooled], outputs=[made], name=found.name)
        # What is known of the map's window goes with its name.
        behind.metadata_props.update(found.metadata_props)
        found.name = pooled.name = f"{found.name}/before_relu"
        graph.insert_after(found, behind)
        graph.remove(relu, safe=True)
        return f"{relu.name} runs behind it"

    def node_name(self, found: ir.Node) -> str:
        """The pool."""
        return str(found.name)


def _relu_before(pool: ir.Node) -> ir.Node | None:
    node = pool.inputs[0].producer() if pool.inputs and pool.inputs[0] is not None else None
    return node if node is not None and node.op_type == "Relu" else None
