"""Half precision on a CPU, where ONNX Runtime has no kernels for it: float32 arithmetic, every result rounded.

That is what a GPU's tensor cores do (products summed in float32, results stored in half precision), so it shows what a
graph in half precision gives, but not how fast.
"""

import onnx
from onnx import TensorProto, helper

HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def computes_in_half(skeleton: bytes) -> bool:
    """Whether any weight of a serialised model is of float16 or bfloat16."""
    return any(tensor.data_type in HALVES for tensor in onnx.ModelProto.FromString(skeleton).graph.initializer)


def widened(skeleton: bytes) -> bytes:
    """The same serialised graph in float32: constants as they are, every node's result rounded to the type it had.

    The graph has to state the types of all its values; what it takes and gives stays as it is.
    """
    model = onnx.ModelProto.FromString(skeleton)
    types = {value.name: value.type.tensor_type.elem_type for value in model.graph.value_info}
    constants = [tensor.name for tensor in model.graph.initializer if tensor.data_type in HALVES]
    wide = {name: f"{name}/wide" for name in constants}
    nodes = [_cast(name, wide[name], TensorProto.FLOAT) for name in constants]
    for node in model.graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) in HALVES:
                exact, wide[name] = f"{name}/exact", f"{name}/wide"
                node.output[index] = exact
                # A Cast rounds by itself, but its rounding has to be undone like that of all others.
                rounded = exact if node.op_type == "Cast" else f"{name}/rounded"
                nodes += [] if node.op_type == "Cast" else [_cast(exact, rounded, types[name])]
                nodes.append(_cast(rounded, wide[name], TensorProto.FLOAT))
    del model.graph.value_info[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _cast(source: str, made: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [made], name=made, to=to)
