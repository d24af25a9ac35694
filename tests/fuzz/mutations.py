"""Mutations of bytes, of JSON and of ONNX graphs. Every choice is drawn from Hypothesis, which can repeat it."""

import copy
import json
import math
from collections.abc import Callable, MutableSequence, Sequence
from typing import Any, TypeVar

import onnx
from hypothesis import strategies as st

T = TypeVar("T")
DrawFunction = Callable[[st.SearchStrategy[Any]], Any]

_LARGE_NUMBER = "@1e999@"  # JSON's 1e999, which Python cannot write
PATHS = (
    "../../../../../copy.onnx", "calibration/../../../../../../copy.onnx", "calibration/..", "../../notes.txt",
    "/etc/passwd", "model.onnx/", "C:\\x", "a\x00b", "\x1b[2J", "",
)  # fmt: skip
HOSTILE: tuple[Any, ...] = (
    None, True, False, 0, -1, 1, 255, 2**31, 2**40, 2**63, 2**64, -(2**63), 10**400, 0.5, -0.0, 1e308, math.inf,
    math.nan, _LARGE_NUMBER, "x", "a" * 10_000, *PATHS, "\ud800", "\xe9" * 300, "8" * 5_000, [], {}, [[]], [None],
    {"": ""}, [0] * 1_000, "[[1]]", "true", "nan", "float32", "32s",
)  # fmt: skip
SIZES = (0, 1, -1, 2, 3, 7, 255, 2**16, 2**31 - 1, 2**31, 2**40, 2**62, -(2**63))
NAMES = ("", "image", "logits", "pixels", "../copy.onnx", "\x1b[2J", "x" * 10_000)
OPERATORS = (
    "If", "Loop", "Scan", "ConstantOfShape", "Identity", "Reshape", "Conv", "Relu", "Cast", "Nothing", "Expand", "Tile",
    "Pad",
)  # fmt: skip


class Draw:
    """Choices, each drawn from Hypothesis."""

    def __init__(self, draw: DrawFunction) -> None:
        self._draw = draw

    def pick(self, choices: Sequence[T]) -> T:
        """Return one of the choices."""
        picked: T = choices[self.number(0, len(choices) - 1)]
        return picked

    def number(self, lowest: int, highest: int) -> int:
        """Return a whole number between two, both included."""
        return int(self._draw(st.integers(lowest, highest)))

    def data(self, most: int) -> bytes:
        """Return up to `most` bytes."""
        return bytes(self._draw(st.binary(max_size=most)))


def mutated_bytes(data: bytes, draw: Draw) -> bytes:
    """Flip, cut, insert, repeat or overwrite bytes, up to four times."""
    changed = bytearray(data)
    for _ in range(draw.number(1, 4)):
        start = draw.number(0, max(0, len(changed) - 1))
        end = min(len(changed), start + draw.number(1, 64))
        match draw.number(0, 5):
            case 0 if changed:
                changed[start] ^= 1 << draw.number(0, 7)
            case 1:
                del changed[start:]
            case 2:
                changed[start:start] = draw.data(16)
            case 3:
                changed[start:start] = changed[start:end] * draw.number(1, 3)
            case 4:
                changed[start:end] = draw.pick((b"\xff", b"\x00", b"\x80")) * (end - start)
            case _:
                del changed[start:end]
    return bytes(changed)


def mutated_json(document: Any, draw: Draw) -> Any:
    """Replace, remove, repeat, exchange or rename parts of a document, up to three times."""
    changed = copy.deepcopy(document)
    for _ in range(draw.number(1, 3)):
        if not isinstance(changed, dict | list) or not changed:
            return draw.pick(HOSTILE)
        holder, key = _place(changed, draw)
        match draw.number(0, 5):
            case 0:
                del holder[key]
            case 1 if isinstance(holder, list):
                holder.insert(key, copy.deepcopy(holder[key]))
            case 1:
                holder[draw.pick(PATHS)] = copy.deepcopy(holder[key])
            case 2 if isinstance(holder, dict):
                holder[draw.pick(PATHS)] = holder.pop(key)
            case 3:
                other, at = _place(changed, draw)
                holder[key] = copy.deepcopy(other[at])
            case _:
                holder[key] = draw.pick(HOSTILE)
    return changed


def _place(document: Any, draw: Draw) -> tuple[Any, Any]:
    """Return a container and one of its keys, at any depth: every member of a container is as likely as the others."""
    while True:
        key = draw.pick(list(document) if isinstance(document, dict) else range(len(document)))
        inner = document[key]
        if not isinstance(inner, dict | list) or not inner or not draw.number(0, 2):
            return document, key
        document = inner


def json_bytes(document: Any) -> bytes:
    """Return the document as JSON; what Python alone understands, such as NaN, is left in."""
    return json.dumps(document).replace(f'"{_LARGE_NUMBER}"', "1e999").encode()


def mutated_onnx(data: bytes, draw: Draw) -> bytes:
    """Change shapes, names, operators, attributes, weights and facts of a model, up to three times."""
    model = onnx.ModelProto.FromString(data)
    for _ in range(draw.number(1, 3)):
        draw.pick(_CHANGES)(model, draw)
    return bytes(model.SerializeToString())


def _change_a_size(model: onnx.ModelProto, draw: Draw) -> None:
    values = [*model.graph.input, *model.graph.output, *model.graph.value_info]
    dims = [dim for value in values for dim in value.type.tensor_type.shape.dim]
    if dims and draw.number(0, 1):
        draw.pick(dims).dim_value = draw.pick(SIZES)
    elif model.graph.initializer:
        tensor = draw.pick(model.graph.initializer)
        tensor.dims.insert(draw.number(0, len(tensor.dims)), draw.pick(SIZES))


def _remove_something(model: onnx.ModelProto, draw: Draw) -> None:
    graph = model.graph
    lists = (graph.node, graph.input, graph.output, graph.initializer, model.opset_import, model.metadata_props)
    chosen = draw.pick(lists)
    if chosen:
        del chosen[draw.number(0, len(chosen) - 1)]


def _rewire(model: onnx.ModelProto, draw: Draw) -> None:
    if not model.graph.node:
        return
    known = [name for node in model.graph.node for name in (*node.input, *node.output)]
    ends: MutableSequence[str] = (
        draw.pick(model.graph.node).input if draw.number(0, 1) else draw.pick(model.graph.node).output
    )
    if ends:
        ends[draw.number(0, len(ends) - 1)] = draw.pick((*known, *NAMES))


def _change_an_operator(model: onnx.ModelProto, draw: Draw) -> None:
    if model.graph.node:
        node = draw.pick(model.graph.node)
        node.op_type = draw.pick(OPERATORS)
        node.domain = draw.pick(("", "", "", "somewhere"))


def _change_an_attribute(model: onnx.ModelProto, draw: Draw) -> None:
    attributes = [attribute for node in model.graph.node for attribute in node.attribute]
    if attributes:
        attribute = draw.pick(attributes)
        attribute.type = draw.pick((attribute.type, onnx.AttributeProto.INT, onnx.AttributeProto.GRAPH))
        attribute.ints.append(draw.pick(SIZES[:-1]))
        if len(attribute.ints) > 1 and draw.number(0, 1):
            attribute.ints[0] = draw.pick(SIZES)


def _change_a_weight(model: onnx.ModelProto, draw: Draw) -> None:
    if not model.graph.initializer:
        return
    tensor = draw.pick(model.graph.initializer)
    match draw.number(0, 3):
        case 0:
            tensor.data_type = draw.number(0, 30)
        case 1:
            tensor.raw_data = mutated_bytes(tensor.raw_data[:4096], draw)
        case 2:
            tensor.name = draw.pick(NAMES)
        case _:
            tensor.data_location = onnx.TensorProto.EXTERNAL
            for key in ("location", "offset", "length"):
                tensor.external_data.add(key=key, value=str(draw.pick((*SIZES, *NAMES[:-1]))))


def _change_a_fact(model: onnx.ModelProto, draw: Draw) -> None:
    if model.metadata_props:
        entry = draw.pick(model.metadata_props)
        entry.value = draw.pick((*map(str, SIZES), *NAMES, "nan", "1e999", entry.value * 3, "16s", "caffe", "true"))
    model.ir_version = draw.pick((model.ir_version, model.ir_version, 0, 2**31))


def _add_a_function(model: onnx.ModelProto, draw: Draw) -> None:
    """Add a function that calls itself, or one of ordinary nodes, and call it."""
    body = [onnx.helper.make_node("F" if draw.number(0, 1) else "Relu", ["x"], ["y"], domain=draw.pick(("", "own")))]
    model.functions.append(onnx.helper.make_function("own", "F", ["x"], ["y"], body, list(model.opset_import)))
    model.opset_import.append(onnx.helper.make_opsetid("own", 1))
    if model.graph.node:
        node = draw.pick(model.graph.node)
        node.op_type, node.domain = "F", "own"


_CHANGES = (
    _change_a_size, _remove_something, _rewire, _change_an_operator, _change_an_attribute, _change_a_weight,
    _change_a_fact, _add_a_function,
)  # fmt: skip
