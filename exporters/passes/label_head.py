"""The label head: the class of the largest logit as a byte per pixel, decided inside the graph."""

from collections.abc import Sequence

import onnx_ir as ir

from exporters.passes.base import Rewrite
from exporters.passes.static import static_shape
from fcn_deploy.model_info import LABELS_NAME, MAX_CLASSES


class LabelHead(Rewrite):
    """The pass: N x K x H x W float logits become N x H x W uint8 labels, called `labels`.

    Of equal logits the lowest class wins, as in NumPy. A label map is 1/(4 K) of the logits it is chosen from.
    """

    name = "labels"
    pattern = "the graph's only output, N x K x H x W float logits"

    def find(self, model: ir.Model) -> Sequence[ir.Value]:
        """The outputs that are no labels yet."""
        return [value for value in model.graph.outputs if value.name != LABELS_NAME]

    def check(self, found: ir.Value) -> str | None:
        """Refuse what cannot be logits of at most 255 classes."""
        shape, graph = static_shape(found), found.graph
        if graph is None or len(graph.outputs) != 1:
            return "the graph has several outputs"
        if shape is None or len(shape) != 4 or found.dtype is None or not found.dtype.is_floating_point():
            return f"{found.name} is no float map of fixed N x K x H x W"
        if shape[1] > MAX_CLASSES:
            return f"{shape[1]} classes do not fit a byte: at most {MAX_CLASSES}"
        return None

    def rewrite(self, model: ir.Model, found: ir.Value) -> str:
        """Append ArgMax and Cast."""
        batch, _, height, width = static_shape(found) or (0, 0, 0, 0)
        shape = ir.Shape((batch, height, width))
        largest = ir.Value(name="labels/argmax", shape=shape, type=ir.TensorType(ir.DataType.INT64))
        labels = ir.Value(name=LABELS_NAME, shape=shape, type=ir.TensorType(ir.DataType.UINT8))
        how = [ir.AttrInt64("axis", 1), ir.AttrInt64("keepdims", 0)]
        to = [ir.AttrInt64("to", int(ir.DataType.UINT8))]
        model.graph.append(ir.Node("", "ArgMax", [found], how, outputs=[largest], name="labels/argmax"))
        model.graph.append(ir.Node("", "Cast", [largest], to, outputs=[labels], name=LABELS_NAME))
        model.graph.outputs[0] = labels
        return f"{found.name} becomes labels, {batch} x {height} x {width} bytes"

    def node_name(self, found: ir.Value) -> str:
        """The output."""
        return str(found.name)
