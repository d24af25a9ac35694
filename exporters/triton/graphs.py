"""The graphs of a repository: pixels as input, labels as output, and a variable batch.

Unlike the pixel input of an export, the nodes added here leave the model's own nodes and weights untouched. So they fit
every precision, and the model reads the numbers of `Preprocessing.apply`, bit for bit.
"""

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import ShapeInferencePass

from exporters.passes.edit import add_constant, constant, constant_ints, required_constant
from exporters.passes.heads import pixel_nodes
from exporters.rewrite import with_heads
from fcn_deploy.choices import Head, ImageInput
from fcn_deploy.errors import ParityError, UsageError
from fcn_deploy.graph import static_shape
from fcn_deploy.images import SAMPLE_PHOTO, Labels, Pixels
from fcn_deploy.model_info import INPUT_NAME, OUTPUT_NAME, PIXELS_NAME, ModelInfo
from fcn_deploy.parity.inputs import Shape, photo_input, pixel_noise_input
from fcn_deploy.parity.tolerance import TIERS
from fcn_deploy.runtime.base import feed_of, labels_of
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.runtime.run_graph import open_graph

_IR_VERSION, _OPSET = 8, 17


def pixels_to_labels(model: ir.Model, info: ModelInfo) -> ir.Model:
    """Return a copy of `model` from N x H x W x 3 uint8 RGB pixels to N x H x W uint8 labels."""
    changed = _to_labels(model, info) if info.head is not Head.LABELS else model.clone()
    if info.image_input is not ImageInput.UINT8:
        _take_pixels(changed, info)
    return changed


def _to_labels(model: ir.Model, info: ModelInfo) -> ir.Model:
    return with_heads(model, replace(info, image_input=ImageInput.FLOAT, head=Head.LABELS))


def preprocessing(info: ModelInfo, batch: int, height: int, width: int) -> ir.Model:
    """Return a separate model: N x H x W x 3 uint8 RGB `pixels` to N x 3 x H x W pre-processed float32, `image`."""
    image = ir.val(INPUT_NAME, ir.DataType.FLOAT, (batch, 3, height, width))
    model = _model(ir.Graph([image], [], nodes=[], name="preprocessing"))
    model.graph.outputs.append(_take_pixels(model, info))
    return model


def postprocessing(info: ModelInfo, batch: int, height: int, width: int) -> ir.Model:
    """Return a separate model: N x K x H x W float32 `logits` to N x H x W uint8 `labels`."""
    logits = ir.val(OUTPUT_NAME, ir.DataType.FLOAT, (batch, info.network.num_classes, height, width))
    graph = ir.Graph([logits], [logits], nodes=[], name="postprocessing")
    return _to_labels(_model(graph), info)


def _model(graph: ir.Graph) -> ir.Model:
    graph.opset_imports[""] = _OPSET
    return ir.Model(graph, ir_version=_IR_VERSION)


def _take_pixels(model: ir.Model, info: ModelInfo) -> ir.Value:
    """Replace a model's input by pixels, in place; returns the value that has the input's name now."""
    image, graph = model.graph.inputs[0], model.graph
    nodes = pixel_nodes(model, image, info.preprocessing, "preprocess", in_order=True)
    made = nodes[-1].outputs[0]
    image.replace_all_uses_with(made)
    if len(graph):
        graph.insert_before(graph[0], nodes)
    else:
        graph.extend(nodes)
    return made


_BATCH = "batch"

# Maps the sizes after the batch to a shape that begins with the batch of the run.
ShapeOf = Callable[[tuple[int, ...]], ir.Value]


def with_free_batch(model: ir.Model) -> ir.Model:
    """Return a copy of `model` with a variable batch, for requests that Triton batches.

    Raises:
        UsageError: the graph fixes its batch in an unknown way.
    """
    changed = model.clone()
    graph = changed.graph
    (image,), batch = graph.inputs, (static_shape(graph.inputs[0]) or (1,))[0]
    stored = [value for value in list(graph.initializers.values()) if _is_repeated(value, batch)]
    expanded = [node for node in graph if _expands_to(node, batch)]
    if stored or expanded:
        front = graph[0]
        shape_of = _shapes(changed, front)
        for value in stored:
            _repeat_stored(changed, value, shape_of, front)
        for node in expanded:
            node.replace_input_with(1, shape_of((constant_ints(node.inputs[1]) or ())[1:]))
    for value in (*graph.outputs, *(output for node in graph for output in node.outputs)):
        value.shape = None
    image.shape = ir.Shape([_BATCH, *(image.shape or ())[1:]])
    ShapeInferencePass()(changed)
    fixed = [str(value.name) for value in graph.outputs if value.shape is None or isinstance(value.shape[0], int)]
    if fixed:
        raise UsageError(
            f"the batch of {fixed[0]} stays fixed at {batch}: the graph fixes it in an unknown way",
            remedy="Pass --backend python, or export with --batch 1.",
        )
    for value in graph.outputs:
        value.shape = ir.Shape([_BATCH, *(value.shape or ())[1:]])
    return changed


def _is_repeated(value: ir.Value, batch: int) -> bool:
    """Return whether a node adds a constant to a map, the same for every image of the batch."""
    array = constant(value)
    if array is None or array.ndim != 4 or array.shape[0] != batch:
        return False
    readers = {use.node.op_type for use in value.uses()}
    return readers == {"Concat"} and bool((array == array[:1]).all())


def _expands_to(node: ir.Node, batch: int) -> bool:
    """Return whether a node repeats one image's constant for the batch."""
    if node.op_type != "Expand":
        return False
    array, shape = constant(node.inputs[0]), constant_ints(node.inputs[1])
    return array is not None and shape is not None and array.shape[:1] == (1,) and shape[:1] == (batch,)


def _shapes(model: ir.Model, front: ir.Node) -> ShapeOf:
    """Return a function that adds nodes for shapes at run time, each once, before the node `front`."""
    image = model.graph.inputs[0]
    size = ir.val("batch/size", ir.DataType.INT64, (1,))
    node = ir.node("Shape", [image], {"start": 0, "end": 1}, outputs=[size], name=size.name)
    model.graph.insert_before(front, node)

    @cache
    def shape_of(rest: tuple[int, ...]) -> ir.Value:
        name = "batch/" + "x".join(map(str, rest))
        behind = add_constant(model, f"{name}/sizes", np.array(rest, dtype=np.int64))
        shape = ir.val(name, ir.DataType.INT64, (len(rest) + 1,))
        model.graph.insert_before(front, ir.node("Concat", [size, behind], {"axis": 0}, outputs=[shape], name=name))
        return shape

    return shape_of


def _repeat_stored(model: ir.Model, value: ir.Value, shape_of: ShapeOf, front: ir.Node) -> None:
    array = required_constant(value)
    one = add_constant(model, f"{value.name}/one", array[:1])
    output = ir.val(f"{value.name}/batch", value.dtype)
    node = ir.node("Expand", [one, shape_of(array.shape[1:])], outputs=[output], name=output.name)
    model.graph.insert_before(front, node)
    value.replace_all_uses_with(output)
    model.graph.initializers.pop(str(value.name))


def require_same_labels(source: Path, served: ir.Model, shape: Shape, info: ModelInfo) -> None:
    """Compare labels of `served` with those of the ONNX file `source`, on a photo and on noise, on the CPU.

    `shape` is N, 3, H, W of the artifact; batches of 1 and of N are compared.

    Raises:
        ParityError: more labels differ than a changed order of sums explains.
    """
    pictures = [photo_input(SAMPLE_PHOTO, shape), pixel_noise_input(seed=0, shape=shape)]
    pixels = np.concatenate([one.pixels for one in pictures if one.pixels is not None])
    with OrtRunner(source) as runner:
        feeds = [feed_of(runner.inputs[0], part, info.preprocessing) for part in np.split(pixels, len(pictures))]
        expected = np.concatenate([labels_of(runner.run(feed), info.boundary) for feed in feeds])
    bound = TIERS["fp32"].label_agreement or 1.0
    for batch in sorted({1, shape[0]}):
        found = _labels(served, pixels, batch)
        flips = int(np.count_nonzero(found != expected))
        # One pixel may always differ, since small maps cannot resolve the share.
        if flips > 1 and flips > (1 - bound) * expected.size:
            raise ParityError(
                f"the graph for Triton labels {flips} of {expected.size} pixels unlike {source}, in batches of {batch}",
                remedy="Nothing was written. Pass --backend python, which runs the artifact unchanged.",
            )


def _labels(model: ir.Model, pixels: Pixels, batch: int) -> Labels:
    fixed = model.clone()
    image = fixed.graph.inputs[0]
    image.shape = ir.Shape((batch, *pixels.shape[1:]))
    with open_graph(fixed) as runner:
        parts = np.split(pixels, len(pixels) // batch)
        return np.concatenate([labels_of(runner.run({PIXELS_NAME: part})) for part in parts])
