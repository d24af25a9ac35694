"""Heads: uint8 RGB pixels as the input, as decoders return them, and labels as the output.

With pixels, the graph pre-processes them itself. The order of channels folds into the first convolution's weights. The
mean does not fold into its bias: the network pads after the subtraction, with zeros that stand for the mean colour, so
a bias would be wrong wherever a tap reads padding.
"""

from collections.abc import Iterator, Sequence

import numpy as np
import onnx_ir as ir

from exporters.passes.edit import Rewrite, add_constant, constant, only_reader, required_constant
from fcn_deploy.choices import ChannelOrder
from fcn_deploy.graph import static_shape
from fcn_deploy.model_info import LABELS_NAME, MAX_CLASSES, PIXELS_NAME
from fcn_deploy.preprocessing import Preprocessing, Triple

_RGB_TO_BGR = (2, 1, 0)


class PixelHead(Rewrite):
    """the input, N x 3 x H x W pre-processed float, becomes `pixels`, N x H x W x 3 uint8 RGB."""

    name = "pixels"

    def __init__(self, preprocessing: Preprocessing) -> None:
        self._preprocessing = preprocessing

    def find(self, model: ir.Model) -> Sequence[ir.Value]:
        """Return the inputs that are not pixels yet."""
        return [value for value in model.graph.inputs if value.name != PIXELS_NAME]

    def check(self, found: ir.Value) -> str | None:
        """Refuse other inputs."""
        shape, graph = static_shape(found), found.graph
        if graph is None or len(graph.inputs) != 1:
            return "the graph has several inputs"
        floating = found.dtype is not None and found.dtype.is_floating_point()
        if shape is None or len(shape) != 4 or shape[1] != 3 or not floating:
            return f"{found.name} is not a float image of fixed N x 3 x H x W"
        return None

    def rewrite(self, model: ir.Model, found: ir.Value) -> str:
        """Pre-process as RGB, and reverse the first weights' channels where the network's are BGR; else the planes."""
        batch, _, height, width = static_shape(found) or (0, 0, 0, 0)
        convolution = _first_convolution(found)
        if self._preprocessing.channel_order is ChannelOrder.BGR and convolution is not None:
            weight = required_constant(convolution.inputs[1])
            turned = add_constant(model, f"{convolution.name}/weight_rgb", weight[:, ::-1])
            convolution.replace_input_with(1, turned)
        nodes = pixel_nodes(model, found, self._preprocessing, "image", in_order=convolution is None)
        found.replace_all_uses_with(nodes[-1].outputs[0])
        model.graph.insert_before(model.graph[0], nodes)
        return f"{found.name} becomes pixels, {batch} x {height} x {width} x 3 bytes of RGB"


def pixel_nodes(
    model: ir.Model, image: ir.Value, preprocessing: Preprocessing, prefix: str, *, in_order: bool
) -> list[ir.Node]:
    """Make `pixels`, N x H x W x 3 uint8 RGB, the input of a graph.

    Returns:
        Nodes, not yet in the graph, from `pixels` to pre-processed N x 3 x H x W of the image's name and dtype: in RGB,
        or `in_order` of the network's channels.
    """
    dtype, (batch, _, height, width) = image.dtype or ir.DataType.FLOAT, static_shape(image) or (0, 0, 0, 0)
    shape = (batch, height, width, 3)
    pixels = model.graph.inputs[0] = ir.val(PIXELS_NAME, ir.DataType.UINT8, shape)
    cast = ir.val(f"{prefix}/cast", dtype, shape)
    nodes = [ir.node("Cast", [pixels], {"to": int(dtype)}, outputs=[cast], name=cast.name)]
    for operator, result, name, values in _operations(preprocessing):
        factor = add_constant(model, f"{prefix}/{name}", np.array(values, dtype=dtype.numpy()))
        made = ir.val(f"{prefix}/{result}", dtype, shape)
        nodes.append(ir.node(operator, [nodes[-1].outputs[0], factor], outputs=[made], name=made.name))
    planes, source = ir.val(f"{prefix}/planes", dtype, (batch, 3, height, width)), nodes[-1].outputs[0]
    nodes.append(ir.node("Transpose", [source], {"perm": [0, 3, 1, 2]}, outputs=[planes], name=planes.name))
    if in_order and preprocessing.channel_order is ChannelOrder.BGR:
        order = add_constant(model, f"{prefix}/bgr", np.array(_RGB_TO_BGR, dtype=np.int64))
        turned = ir.val(f"{prefix}/turned", dtype, planes.shape)
        nodes.append(ir.node("Gather", [planes, order], {"axis": 1}, outputs=[turned], name=turned.name))
    nodes[-1].name = nodes[-1].outputs[0].name = image.name
    return nodes


def _operations(preprocessing: Preprocessing) -> Iterator[tuple[str, str, str, float | Triple]]:
    """Yield operator, name of the result, name of the constant and the constant, as `Preprocessing.apply` computes."""
    if preprocessing.scale != 1:
        yield "Mul", "scaled", "scale", preprocessing.scale
    yield "Sub", "centre", "mean_rgb", preprocessing.in_rgb(preprocessing.mean)
    if set(preprocessing.std) != {1.0}:
        yield "Div", "normalised", "std_rgb", preprocessing.in_rgb(preprocessing.std)


def _first_convolution(image: ir.Value) -> ir.Node | None:
    """Return the only Conv that reads the image, perhaps through one Pad."""
    node: ir.Node | None = only_reader(image)
    if node is not None and node.op_type == "Pad":
        node = only_reader(node.outputs[0])
    if node is None or node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
        return None
    weight = constant(node.inputs[1])
    # With other channels than the image's, a Pad has added some.
    return node if weight is not None and weight.ndim == 4 and weight.shape[1] == 3 else None


class LabelHead(Rewrite):
    """N x K x H x W float logits become N x H x W uint8 labels, called `labels`.

    Of equal logits the lowest class wins, as in NumPy; the logit of a single class has to be above `boundary` for the
    label 1. A label map is 1/(4 K) of the logits it is chosen from.
    """

    name = "labels"

    def __init__(self, boundary: float = 0.0) -> None:
        self._boundary = boundary

    def find(self, model: ir.Model) -> Sequence[ir.Value]:
        """Return the outputs that are not labels yet."""
        return [value for value in model.graph.outputs if value.name != LABELS_NAME]

    def check(self, found: ir.Value) -> str | None:
        """Refuse what cannot be logits of at most 255 classes."""
        shape, graph = static_shape(found), found.graph
        if graph is None or len(graph.outputs) != 1:
            return "the graph has several outputs"
        if shape is None or len(shape) != 4 or found.dtype is None or not found.dtype.is_floating_point():
            return f"{found.name} is not a float map of fixed N x K x H x W"
        if shape[1] > MAX_CLASSES:
            return f"{shape[1]} classes do not fit a byte: at most {MAX_CLASSES}"
        return None

    def rewrite(self, model: ir.Model, found: ir.Value) -> str:
        """Append ArgMax, or for a single class Greater and Squeeze, and Cast."""
        batch, classes, height, width = static_shape(found) or (0, 0, 0, 0)
        nodes = self._largest(found) if classes > 1 else self._above(model, found)
        labels = ir.val(LABELS_NAME, ir.DataType.UINT8, (batch, height, width))
        chosen = nodes[-1].outputs[0]
        cast = ir.node("Cast", [chosen], {"to": int(ir.DataType.UINT8)}, outputs=[labels], name=LABELS_NAME)
        model.graph.extend([*nodes, cast])
        model.graph.outputs[0] = labels
        return f"{found.name} becomes labels, {batch} x {height} x {width} bytes"

    def _largest(self, logits: ir.Value) -> list[ir.Node]:
        batch, _, height, width = static_shape(logits) or (0, 0, 0, 0)
        largest = ir.val("labels/argmax", ir.DataType.INT64, (batch, height, width))
        return [ir.node("ArgMax", [logits], {"axis": 1, "keepdims": 0}, outputs=[largest], name=largest.name)]

    def _above(self, model: ir.Model, logits: ir.Value) -> list[ir.Node]:
        batch, _, height, width = static_shape(logits) or (0, 0, 0, 0)
        dtype = (logits.dtype or ir.DataType.FLOAT).numpy()
        boundary = add_constant(model, "labels/boundary", np.array(self._boundary, dtype=dtype))
        axes = add_constant(model, "labels/axes", np.array([1], dtype=np.int64))
        above = ir.val("labels/above", ir.DataType.BOOL, (batch, 1, height, width))
        alone = ir.val("labels/squeeze", ir.DataType.BOOL, (batch, height, width))
        return [
            ir.node("Greater", [logits, boundary], outputs=[above], name=above.name),
            ir.node("Squeeze", [above, axes], outputs=[alone], name=alone.name),
        ]
