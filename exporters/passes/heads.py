"""Heads: uint8 RGB pixels as the input, as decoders return them, and labels as the output.

With pixels, the graph subtracts the mean itself. The order of channels folds into the first convolution's weights. The
mean does not fold into its bias: the network pads after the subtraction, with zeros that stand for the mean colour, so
a bias would be wrong wherever a tap reads padding.
"""

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from exporters.passes.edit import Rewrite, add_constant, constant, only_reader, required_constant, static_shape
from fcn_deploy.model_info import LABELS_NAME, MAX_CLASSES, MEAN_BGR, PIXELS_NAME


class PixelHead(Rewrite):
    """the input, N x 3 x H x W float BGR less the mean, becomes `pixels`, N x H x W x 3 uint8 RGB."""

    name = "pixels"

    def find(self, model: ir.Model) -> Sequence[ir.Value]:
        """Return the inputs that are not pixels yet."""
        return [value for value in model.graph.inputs if value.name != PIXELS_NAME]

    def check(self, found: ir.Value) -> str | None:
        """Refuse other inputs, and first nodes into which the order of channels cannot be folded."""
        shape, graph = static_shape(found), found.graph
        if graph is None or len(graph.inputs) != 1:
            return "the graph has several inputs"
        floating = found.dtype is not None and found.dtype.is_floating_point()
        if shape is None or len(shape) != 4 or shape[1] != 3 or not floating:
            return f"{found.name} is not a float image of fixed N x 3 x H x W"
        if _first_convolution(found) is None:
            return f"{found.name} is not read by one ungrouped Conv of constant weights, perhaps through one Pad"
        return None

    def rewrite(self, model: ir.Model, found: ir.Value) -> str:
        """Add Cast, Sub of the mean and Transpose; reverse the channels of the first weights."""
        convolution, (batch, _, height, width) = _first_convolution(found), static_shape(found) or (0, 0, 0, 0)
        if convolution is None:
            raise ValueError("the check refuses this place")
        weight = required_constant(convolution.inputs[1])
        turned = add_constant(model, f"{convolution.name}/weight_rgb", weight[:, ::-1])
        convolution.replace_input_with(1, turned)
        nodes = pixel_nodes(model, found, "image", "image")
        found.replace_all_uses_with(nodes[-1].outputs[0])
        model.graph.insert_before(model.graph[0], nodes)
        return f"{found.name} becomes pixels, {batch} x {height} x {width} x 3 bytes of RGB"


def pixel_nodes(model: ir.Model, image: ir.Value, prefix: str, planes: str) -> list[ir.Node]:
    """Make `pixels`, N x H x W x 3 uint8 RGB, the input of a graph.

    Returns:
        Nodes, not yet in the graph, from `pixels` to `planes`: N x 3 x H x W RGB less the mean, of its dtype.
    """
    dtype, (batch, _, height, width) = image.dtype or ir.DataType.FLOAT, static_shape(image) or (0, 0, 0, 0)
    mean = add_constant(model, f"{prefix}/mean_rgb", np.array(MEAN_BGR[::-1], dtype=dtype.numpy()))
    shape = (batch, height, width, 3)
    pixels = model.graph.inputs[0] = ir.val(PIXELS_NAME, ir.DataType.UINT8, shape)
    cast, centred = (ir.val(f"{prefix}/{name}", dtype, shape) for name in ("cast", "centre"))
    rgb = ir.val(planes, dtype, (batch, 3, height, width))
    return [
        ir.node("Cast", [pixels], {"to": int(dtype)}, outputs=[cast], name=cast.name),
        ir.node("Sub", [cast, mean], outputs=[centred], name=centred.name),
        ir.node("Transpose", [centred], {"perm": [0, 3, 1, 2]}, outputs=[rgb], name=planes),
    ]


def _first_convolution(image: ir.Value) -> ir.Node | None:
    """Return the only Conv that reads the image, perhaps through one Pad."""
    node: ir.Node | None = only_reader(image)
    if node is not None and node.op_type == "Pad":
        node = only_reader(node.outputs[0])
    if node is None or node.op_type != "Conv" or node.attributes.get_int("group", 1) != 1:
        return None
    return node if constant(node.inputs[1]) is not None else None


class LabelHead(Rewrite):
    """N x K x H x W float logits become N x H x W uint8 labels, called `labels`.

    Of equal logits the lowest class wins, as in NumPy. A label map is 1/(4 K) of the logits it is chosen from.
    """

    name = "labels"

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
        """Append ArgMax and Cast."""
        batch, _, height, width = static_shape(found) or (0, 0, 0, 0)
        largest = ir.val("labels/argmax", ir.DataType.INT64, (batch, height, width))
        labels = ir.val(LABELS_NAME, ir.DataType.UINT8, (batch, height, width))
        argmax = ir.node("ArgMax", [found], {"axis": 1, "keepdims": 0}, outputs=[largest], name=largest.name)
        cast = ir.node("Cast", [largest], {"to": int(ir.DataType.UINT8)}, outputs=[labels], name=LABELS_NAME)
        model.graph.extend([argmax, cast])
        model.graph.outputs[0] = labels
        return f"{found.name} becomes labels, {batch} x {height} x {width} bytes"
