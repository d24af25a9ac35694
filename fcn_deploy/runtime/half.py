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

    What it takes and gives stays as it is.
    """
    # Not every exporter states the types of all values.
    model = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(skeleton))
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    given = [tensor.name for tensor in graph.initializer if tensor.data_type in HALVES]
    given += [value.name for value in graph.input if types[value.name] in HALVES]
    wide = {name: f"{name}/wide" for name in given}
    nodes = [_cast(name, wide[name], TensorProto.FLOAT) for name in given]
    for node in model.graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) in HALVES:
                wide[name] = f"{name}/wide"
                if node.op_type != "Cast":  # which rounds by itself
                    node.output[index] = f"{name}/exact"
                    nodes.append(_cast(f"{name}/exact", name, types[name]))
                nodes.append(_cast(name, wide[name], TensorProto.FLOAT))
    del model.graph.value_info[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _cast(source: str, made: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [made], name=f"{source}/cast", to=to)
