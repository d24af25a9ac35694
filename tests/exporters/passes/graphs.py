"""Graphs for tests of passes: from ONNX's text, and a VGG trunk of any size, padding and width with two skips."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator
from onnx_ir.passes.common import ShapeInferencePass

from exporters.passes.cost import Machine
from exporters.rewrite import with_heads
from fcn_deploy import Geometry, Head, ImageInput, ModelInfo, NetworkSpec, Provenance, Variant
from fcn_deploy.onnx_file import write_model
from fcn_deploy.runtime.ort import OrtRunner

# Computing costs something, further nodes nothing: every widening pays. And the other way round.
THRIFTY = Machine(1.0, float("inf"), 4, 0.0, 1, 1, True, True, "made up")
LAZY = Machine(float("inf"), float("inf"), 4, 1.0, 1, 1, True, True, "made up")
BLOCKS = (2, 2, 3, 3, 3)


def parsed(body: str, inputs: str, outputs: str, **arrays: np.ndarray) -> ir.Model:
    """A graph from ONNX's text with `arrays` as initializers, shapes inferred, nodes named after their outputs."""
    text = f'<ir_version: 10, opset_import: ["": 18]> g ({inputs}) => ({outputs}) {{ {body} }}'
    proto = onnx.parser.parse_model(text)
    for name, array in arrays.items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    for node in proto.graph.node:
        node.name = node.output[0]
    model = ir.serde.deserialize_model(proto)
    ShapeInferencePass()(model)
    return model


def with_ends(model: ir.Model, image_input: ImageInput, head: Head) -> ir.Model:
    """The model with these heads, for an FCN's pre-processing."""
    return with_heads(model, ModelInfo(NetworkSpec(Variant.FCN8S), Provenance(rng_seed=0), image_input, head))


def weights(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 1 / np.sqrt(np.prod(shape[1:])), shape).astype(np.float32)


@dataclass(frozen=True)
class Trunk:
    """What a VGG trunk of width 3 is made of; skips are crops (first, size) of pool3's and pool4's scores."""

    height: int
    width: int
    padding: int = 100
    geometry: Geometry = Geometry.FLOOR
    batch: int = 1
    skip3: tuple[int, int] | None = None
    skip4: tuple[int, int] | None = None

    def model(self) -> ir.Model:
        """Outputs: relu5_3 and the crops. Biases are not zero, so that padding shows."""
        lines, arrays, x = [], {}, "image"
        channels, skips = 3, {3: self.skip3, 4: self.skip4}
        outputs = ["relu5_3"]
        for block, count in enumerate(BLOCKS, start=1):
            for i in range(1, count + 1):
                name = f"conv{block}_{i}"
                pad = self.padding if name == "conv1_1" else 1
                arrays[f"{name}.weight"] = weights(4, channels, 3, 3, seed=10 * block + i) * 1.4
                arrays[f"{name}.bias"] = weights(4, 1, seed=100 + 10 * block + i)[:, 0]
                lines.append(f"{name} = Conv<pads=[{pad},{pad},{pad},{pad}]>({x}, {name}.weight, {name}.bias)")
                x = f"relu{block}_{i}"
                lines.append(f"{x} = Relu({name})")
                channels = 4
            if block < 5:
                ceil = int(self.geometry is Geometry.CAFFE)
                lines.append(f"pool{block} = MaxPool<kernel_shape=[2,2], strides=[2,2], ceil_mode={ceil}>({x})")
                x = f"pool{block}"
                if skips.get(block):
                    outputs.append(self._skip(block, skips[block] or (0, 1), lines, arrays))
        shown = ", ".join(
            f"float[{self.batch},C{i},H{i},W{i}] {name.replace('.', '_')}" for i, name in enumerate(outputs)
        )
        body = "\n".join(lines).replace(".weight", "_weight").replace(".bias", "_bias")
        named = {name.replace(".", "_"): array for name, array in arrays.items()}
        return parsed(body, f"float[{self.batch},3,{self.height},{self.width}] image", shown, **named)

    def _skip(self, block: int, crop: tuple[int, int], lines: list[str], arrays: dict[str, np.ndarray]) -> str:
        first, size = crop
        arrays[f"score{block}.weight"] = weights(2, 4, 1, 1, seed=block)
        arrays[f"score{block}.bias"] = weights(2, 1, seed=50 + block)[:, 0]
        for name, value in (("starts", first), ("ends", first + size)):
            arrays[f"{name}{block}"] = np.array([value, value])
        arrays["axes"] = np.array([2, 3])
        lines.append(f"score{block} = Conv(pool{block}, score{block}.weight, score{block}.bias)")
        lines.append(f"crop{block} = Slice(score{block}, starts{block}, ends{block}, axes)")
        return f"crop{block}"


def as_double(model: ir.Model) -> ir.Model:
    """The same graph in float64."""
    proto = ir.to_proto(model)
    for tensor in proto.graph.initializer:
        array = onnx.numpy_helper.to_array(tensor)
        if array.dtype == np.float32:
            tensor.CopyFrom(onnx.numpy_helper.from_array(array.astype(np.float64), tensor.name))
    del proto.graph.value_info[:]
    for value in (*proto.graph.input, *proto.graph.output):
        value.type.tensor_type.elem_type = onnx.TensorProto.DOUBLE
    double = ir.serde.deserialize_model(proto)
    ShapeInferencePass()(double)
    return double


def run(model: ir.Model, folder: object, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs by ONNX Runtime."""
    from pathlib import Path

    path = Path(str(folder)) / "model.onnx"
    write_model(model, path)
    with OrtRunner(path) as runner:
        return list(runner.run(dict(feeds)).values())


def run_exactly(model: ir.Model, feeds: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    """The outputs by ONNX's own reference, in the graph's arithmetic."""
    return [np.asarray(made) for made in ReferenceEvaluator(ir.to_proto(model)).run(None, dict(feeds))]


def worst(expected: list[np.ndarray], actual: list[np.ndarray]) -> float:
    """The largest error over the range, of all outputs."""
    assert [e.shape for e in expected] == [a.shape for a in actual]
    return max(float(np.abs(e - a).max() / (np.ptp(e) or 1.0)) for e, a in zip(expected, actual, strict=True))


def multiply_adds(model: ir.Model) -> int:
    from fcn_deploy.graph import layers

    return sum(layer.multiply_adds for layer in layers(model))


def operators(model: ir.Model) -> list[str]:
    return [node.op_type for node in model.graph]
