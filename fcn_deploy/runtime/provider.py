"""Where a model can run; importing this loads no runtime."""

from enum import StrEnum


class Provider(StrEnum):
    """Where ONNX Runtime runs a model."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"


def probe_model() -> bytes:
    """A serialised model of one node, to try a provider with."""
    import onnx

    shape = [1, 1, 4, 4]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "probe", tensors[:1], tensors[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())
