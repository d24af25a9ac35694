"""The graphs a repository needs: pixels in front, labels behind.

Unlike the pixel head of an export, what is put in front here leaves the model's own nodes and weights untouched, so it
fits every precision, and the numbers that reach the model are those of `fcn_deploy.images.preprocess`, bit for bit.
"""

import numpy as np
import onnx_ir as ir

from exporters.heads import with_heads
from exporters.passes.edit import add_constant
from exporters.passes.static import static_shape
from fcn_deploy.model_info import INPUT_NAME, LABELS_NAME, MEAN_BGR, OUTPUT_NAME, PIXELS_NAME, Head, ImageInput

_IR_VERSION, _OPSET = 8, 17
_RGB_TO_BGR = (2, 1, 0)


def pixels_to_labels(model: ir.Model) -> ir.Model:
    """`model` from N x H x W x 3 uint8 RGB pixels to N x H x W uint8 labels; it is left as it was."""
    wants_labels = model.graph.outputs[0].name != LABELS_NAME
    changed = with_heads(model, ImageInput.FLOAT, Head.LABELS) if wants_labels else model.clone()
    if changed.graph.inputs[0].name != PIXELS_NAME:
        _take_pixels(changed)
    return changed


def preprocessing(batch: int, height: int, width: int) -> ir.Model:
    """A model of its own: N x H x W x 3 uint8 RGB `pixels` to N x 3 x H x W float32 BGR less the mean, `image`."""
    image = _value(INPUT_NAME, (batch, 3, height, width), ir.DataType.FLOAT)
    model = _model(ir.Graph([image], [], nodes=[], name="preprocessing"))
    model.graph.outputs.append(_take_pixels(model))
    return model


def postprocessing(batch: int, classes: int, height: int, width: int) -> ir.Model:
    """A model of its own: N x K x H x W float32 `logits` to N x H x W uint8 `labels`."""
    logits = _value(OUTPUT_NAME, (batch, classes, height, width), ir.DataType.FLOAT)
    graph = ir.Graph([logits], [logits], nodes=[], name="postprocessing")
    return with_heads(_model(graph), ImageInput.FLOAT, Head.LABELS)


def _model(graph: ir.Graph) -> ir.Model:
    graph.opset_imports[""] = _OPSET
    return ir.Model(graph, ir_version=_IR_VERSION)


def _value(name: str, shape: tuple[int, ...], dtype: ir.DataType) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(dtype))


def _take_pixels(model: ir.Model) -> ir.Value:
    """Put pixels in front of a model's input, in place; returns what took the input's place, and has its name."""
    image = model.graph.inputs[0]
    batch, _, height, width = static_shape(image) or (0, 0, 0, 0)
    pixels = _value(PIXELS_NAME, (batch, height, width, 3), ir.DataType.UINT8)
    mean = add_constant(model, "preprocess/mean_rgb", np.array(MEAN_BGR[::-1], dtype=np.float32))
    order = add_constant(model, "preprocess/bgr", np.array(_RGB_TO_BGR, dtype=np.int64))
    float_rgb, planes = (batch, height, width, 3), (batch, 3, height, width)
    cast = _node("Cast", [pixels], "preprocess/cast", float_rgb, ir.AttrInt64("to", int(ir.DataType.FLOAT)))
    centred = _node("Sub", [cast.outputs[0], mean], "preprocess/centre", float_rgb)
    transpose = ir.AttrInt64s("perm", [0, 3, 1, 2])
    rgb = _node("Transpose", [centred.outputs[0]], "preprocess/planes", planes, transpose)
    bgr = _node("Gather", [rgb.outputs[0], order], str(image.name), planes, ir.AttrInt64("axis", 1))
    image.replace_all_uses_with(bgr.outputs[0])
    nodes = [cast, centred, rgb, bgr]
    if len(model.graph):
        model.graph.insert_before(model.graph[0], nodes)
    else:
        model.graph.extend(nodes)
    model.graph.inputs[0] = pixels
    return bgr.outputs[0]


def _node(operator: str, inputs: list[ir.Value], name: str, shape: tuple[int, ...], *attributes: ir.Attr) -> ir.Node:
    output = _value(name, shape, ir.DataType.FLOAT)
    return ir.Node("", operator, inputs, attributes, outputs=[output], name=name)
