"""Single-file ONNX models without copying their weights.

Serialising 540 MB of weights through protobuf holds three copies of them in memory and takes seconds; loading is no
better. An ONNX file is a protobuf message, though, and its encoding is simple enough to write and to read around the
weights (https://protobuf.dev/programming-guides/encoding): here the skeleton goes through protobuf, and each large
tensor's bytes go straight between memory and the file. Readers see an ordinary ONNX file.

Field numbers are those of onnx.proto.
"""

import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from fcn_deploy.errors import BundleError, OutputError

# Smaller tensors (crop offsets, biases) stay in the skeleton, because passes and shape inference read their values.
LARGE_TENSOR_BYTES = 16 * 1024
PROTOBUF_LIMIT_BYTES = 2**31 - 1
MAX_VARINT_BYTES = 10

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
_VARINT, _FIXED64, _LENGTH_DELIMITED, _FIXED32 = 0, 1, 2, 5


@dataclass(frozen=True)
class _Field:
    """One protobuf field in a buffer: its number, where it starts, and where its value lies."""

    number: int
    start: int
    value: int
    end: int


def write_model(model: ir.Model, path: Path) -> None:
    """Write a model as one ONNX file, streaming its large initializers; the model is not changed.

    Raises:
        OutputError: the file would break protobuf's limit of 2 GiB.
        OSError: from the file system.
    """
    skeleton, tensors = split_weights(model)
    graph = skeleton.graph.SerializeToString()
    skeleton.ClearField("graph")
    heads = [_tensor_head(name, tensor) for name, tensor in tensors.items()]
    sizes = [len(head) + tensor.nbytes for head, tensor in zip(heads, tensors.values(), strict=True)]
    entries = [_tag(_GRAPH_INITIALIZER, size) for size in sizes]
    graph_size = len(graph) + sum(sizes) + sum(len(entry) for entry in entries)
    _check_limit(path, graph_size + skeleton.ByteSize())
    with path.open("wb") as file:
        file.write(skeleton.SerializeToString() + _tag(_MODEL_GRAPH, graph_size) + graph)
        for entry, head, tensor in zip(entries, heads, tensors.values(), strict=True):
            file.write(entry + head)
            cast(Any, tensor).tofile(file)


def split_weights(model: ir.Model) -> tuple[onnx.ModelProto, dict[str, ir.TensorProtocol]]:
    """Split a model into a protobuf skeleton and its large initializers by name."""
    tensors = large_initializers(model)
    values = {name: model.graph.initializers.pop(name) for name in tensors}
    try:
        return ir.to_proto(model), tensors
    finally:
        model.graph.initializers.update(values)


def large_initializers(model: ir.Model) -> dict[str, ir.TensorProtocol]:
    """Return the initializers of at least `LARGE_TENSOR_BYTES`, by name."""
    values = model.graph.initializers.items()
    return {n: v.const_value for n, v in values if v.const_value and v.const_value.nbytes >= LARGE_TENSOR_BYTES}


def read_model(path: Path) -> ir.Model:
    """Read an ONNX file; large initializers are mapped into memory when their values are used.

    Raises:
        BundleError: missing, truncated, or not an ONNX file.
    """
    try:
        model = ir.serde.deserialize_model(onnx.ModelProto.FromString(skeleton_bytes(path)))
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError) as error:
        raise _damaged(path) from error
    for value in model.graph.initializers.values():
        if isinstance(value.const_value, ir.ExternalTensor):
            value.const_value.base_dir = path.parent
    return model


def skeleton_bytes(path: Path) -> bytes:
    """Return the serialised model; its large initializers refer to their bytes in `path` itself.

    Runtimes load it together with the folder of `path` and map the weights from the file.

    Raises:
        BundleError: missing, truncated, or not an ONNX file.
    """
    if not path.is_file():
        raise BundleError(f"{path} is not a file", remedy="Check the path.")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            skeleton = _skeleton(data, path.name)
        proto = onnx.ModelProto.FromString(skeleton)
    except (ValueError, IndexError, DecodeError) as error:
        raise _damaged(path) from error
    if not proto.graph.node:
        raise _damaged(path)
    return skeleton


def _damaged(path: Path) -> BundleError:
    return BundleError(
        f"{path} ({path.stat().st_size} bytes) is truncated or not an ONNX model", remedy="Export or copy it again."
    )


def _skeleton(data: mmap.mmap, location: str) -> bytes:
    model = []
    for field in _fields(data, 0, len(data)):
        if field.number == _MODEL_GRAPH:
            graph = b"".join(_graph_fields(data, field, location))
            model.append(_tag(_MODEL_GRAPH, len(graph)) + graph)
        else:
            model.append(data[field.start : field.end])
    return b"".join(model)


def _graph_fields(data: mmap.mmap, graph: _Field, location: str) -> Iterator[bytes]:
    for field in _fields(data, graph.value, graph.end):
        if field.number == _GRAPH_INITIALIZER and field.end - field.value >= LARGE_TENSOR_BYTES:
            tensor = _reference(data, field, location)
            yield _tag(_GRAPH_INITIALIZER, len(tensor)) + tensor
        else:
            yield data[field.start : field.end]


def _reference(data: mmap.mmap, initializer: _Field, location: str) -> bytes:
    fields = list(_fields(data, initializer.value, initializer.end))
    raw = next((f for f in fields if f.number == _TENSOR_RAW_DATA), None)
    if raw is None:
        return data[initializer.value : initializer.end]
    head = b"".join(data[f.start : f.end] for f in fields if f.number != _TENSOR_RAW_DATA)
    tensor = onnx.TensorProto.FromString(head)
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", raw.value), ("length", raw.end - raw.value)):
        tensor.external_data.add(key=key, value=str(value))
    return bytes(tensor.SerializeToString())


def _fields(data: mmap.mmap, start: int, end: int) -> Iterator[_Field]:
    position = start
    while position < end:
        tag, value = _read_varint(data, position)
        wire = tag & 7
        if wire == _LENGTH_DELIMITED:
            length, value = _read_varint(data, value)
            stop = value + length
        elif wire == _VARINT:
            stop = _read_varint(data, value)[1]
        elif wire in (_FIXED32, _FIXED64):
            stop = value + (4 if wire == _FIXED32 else 8)
        else:
            raise ValueError(f"wire type {wire} at byte {position}")
        if stop > end:
            raise ValueError(f"field at byte {position} ends at {stop}, past {end}")
        yield _Field(tag >> 3, position, value, stop)
        position = stop


def _read_varint(data: mmap.mmap, position: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[position]
        value |= (byte & 0x7F) << shift
        if shift >= 7 * MAX_VARINT_BYTES:
            raise ValueError(f"number at byte {position} does not end")
        position, shift = position + 1, shift + 7
        if byte < 0x80:
            return value, position


def _varint(value: int) -> bytes:
    encoded = bytearray()
    while value >= 0x80:
        encoded.append(value & 0x7F | 0x80)
        value >>= 7
    encoded.append(value)
    return bytes(encoded)


def _tag(number: int, length: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED) + _varint(length)


def _tensor_head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """Return a TensorProto up to the first byte of its raw data."""
    head = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    return bytes(head.SerializeToString()) + _tag(_TENSOR_RAW_DATA, tensor.nbytes)


def _check_limit(path: Path, size: int) -> None:
    if size > PROTOBUF_LIMIT_BYTES:
        raise OutputError(
            f"{path.name} would have {size} bytes; protobuf limits a file to {PROTOBUF_LIMIT_BYTES}",
            remedy="Use fewer classes or a larger channel divisor.",
        )
