"""Single-file ONNX models without copying their weights.

Serialising 540 MB of weights through protobuf holds three copies of them in memory and takes seconds; loading is no
better. An ONNX file is a protobuf message, though, and its encoding is simple enough to write and to read around the
weights (https://protobuf.dev/programming-guides/encoding): here the skeleton goes through protobuf, and each large
tensor's bytes go straight between memory and the file. Readers see an ordinary ONNX file.

Field numbers are those of onnx.proto.
"""

import mmap
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import TYPE_CHECKING, Any, cast

import onnx
from google.protobuf.message import DecodeError

from fcn_deploy.errors import BundleError, OutputError
from fcn_deploy.onnx_check import check_model, invalid, is_sorted, shape_text, tensor_bytes, tensors

if TYPE_CHECKING:
    import onnx_ir as ir

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


def write_model(model: "ir.Model", path: Path) -> None:
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


def split_weights(model: "ir.Model") -> tuple[onnx.ModelProto, "dict[str, ir.TensorProtocol]"]:
    """Split a model into a protobuf skeleton and its large initializers by name."""
    import onnx_ir as ir

    tensors = large_initializers(model)
    values = {name: model.graph.initializers.pop(name) for name in tensors}
    try:
        return ir.to_proto(model), tensors
    except ir.serde.SerdeError as error:
        raise BundleError(f"the model cannot be written: {innermost(error)}", remedy="Export it again.") from error
    finally:
        model.graph.initializers.update(values)


def innermost(error: BaseException) -> str:
    """Return the first line of the error that is the cause of all others."""
    while error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]


def large_initializers(model: "ir.Model") -> "dict[str, ir.TensorProtocol]":
    """Return the initializers of at least `LARGE_TENSOR_BYTES`, by name; strings, which have no bytes, stay."""
    values = model.graph.initializers.items()
    return {name: v.const_value for name, v in values if v.const_value is not None and _is_large(v.const_value)}


def _is_large(tensor: "ir.TensorProtocol") -> bool:
    return int(tensor.dtype) != onnx.TensorProto.STRING and tensor.nbytes >= LARGE_TENSOR_BYTES


def read_model(path: Path) -> "ir.Model":
    """Read an ONNX file and its data files, if it has any; large initializers are mapped when their values are used.

    Links are followed. The nodes are in an order in which they can run.

    Raises:
        BundleError: missing, truncated, not an ONNX file, or not valid; names what is wrong.
    """
    return model_of(read_checked(path), path)


def read_checked(path: Path) -> onnx.ModelProto:
    """Read an ONNX file as `read_model` does, into a message whose large initializers refer to their files.

    Raises:
        BundleError: missing, truncated, not an ONNX file, or not valid; names what is wrong.
    """
    proto = _read(path)
    check_model(proto, str(path))
    return proto


def model_of(proto: onnx.ModelProto, path: Path) -> "ir.Model":
    """Return the graph of a message that was read from `path`; raises BundleError if it has a part nobody can read."""
    # Takes a quarter of a second to import, which what only runs a model can spare.
    import onnx_ir as ir

    try:
        model = ir.serde.deserialize_model(proto)
        if not is_sorted(proto.graph):
            model.graph.sort()
    except (ir.serde.SerdeError, ValueError, TypeError, KeyError, NotImplementedError) as error:
        raise invalid(f"{path}: the graph cannot be read: {innermost(error)}") from error
    return model


@dataclass(frozen=True)
class Skeleton:
    """A serialised model without its large initializers, for runtimes that map these from files."""

    data: bytes  # refers to the files by paths relative to `folder`
    folder: Path  # has no links in its path, nor have the files in theirs


def read_skeleton(path: Path) -> Skeleton:
    """Return a model whose large initializers refer to their bytes in `path` itself, or in the model's data files.

    Runtimes refuse references to links and out of the folder: paths are resolved here, and the folder holds them all.

    Raises:
        BundleError: missing, truncated, or not an ONNX file.
    """
    proto = _read(path)
    references = [tensor for tensor in proto.graph.initializer if _is_reference(tensor)]
    files = [Path(_external(tensor)["location"]) for tensor in references]
    folder = Path(os.path.commonpath([path.resolve().parent, *(file.parent for file in files)]))
    for tensor, file in zip(references, files, strict=True):
        _refer(tensor, file.relative_to(folder).as_posix(), _external(tensor))
    return Skeleton(bytes(proto.SerializeToString()), folder)


def _read(path: Path) -> onnx.ModelProto:
    """Read a model; its large initializers refer to files by absolute paths without links, all others are in it."""
    if not path.is_file():
        raise BundleError(f"{path} is not a file", remedy="Check the path.")
    try:
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            proto: onnx.ModelProto = onnx.ModelProto.FromString(_skeleton(data, str(path.resolve())))
    except (ValueError, IndexError, DecodeError) as error:
        raise _damaged(path) from error
    if not proto.graph.node:
        raise _damaged(path)
    for tensor in filter(_is_reference, proto.graph.initializer):
        _locate(tensor, path)
        if tensor_bytes(tensor, str(path)) < LARGE_TENSOR_BYTES:
            _embed(tensor)
    for part in (*proto.graph.node, *proto.functions):
        for tensor in filter(_is_reference, tensors(part)):
            _locate(tensor, path)
            _embed(tensor)
    return proto


def _is_reference(tensor: onnx.TensorProto) -> bool:
    return bool(tensor.data_location == onnx.TensorProto.EXTERNAL)


def _external(tensor: onnx.TensorProto) -> dict[str, str]:
    return {entry.key: entry.value for entry in tensor.external_data}


def _refer(tensor: onnx.TensorProto, location: str, place: dict[str, str]) -> None:
    """Let a tensor refer to the file `location`, at the offset and of the length of `place`."""
    tensor.ClearField("external_data")
    for key, value in {**place, "location": location}.items():
        tensor.external_data.add(key=key, value=value)


def _locate(tensor: onnx.TensorProto, path: Path) -> None:
    """Check a tensor's reference, and make it absolute; raises BundleError with the tensor's name."""
    what, found = f"{path}: tensor {tensor.name!r}", _external(tensor)
    file = _data_file(found.get("location", ""), path, what)
    needed = tensor_bytes(tensor, str(path))
    try:
        offset, length = int(found.get("offset", 0)), int(found.get("length", needed))
    except ValueError as error:
        raise invalid(f"{what} has the offset or length {found}, which are no integers") from error
    if length != needed:
        raise invalid(f"{what} has {length} bytes; its shape {shape_text(tensor.dims)} needs {needed}")
    size = file.stat().st_size
    if offset < 0 or offset + length > size:
        raise invalid(f"{what} is bytes {offset} to {offset + length} of {file}, which has {size}")
    _refer(tensor, str(file), {"offset": str(offset), "length": str(length)})


def _data_file(location: str, path: Path, what: str) -> Path:
    """Return the file a tensor refers to, without links; it has to lie in the folder of the model or of its link."""
    own = path.resolve()
    if location == str(own):
        return own
    posix, windows = PurePosixPath(location), PureWindowsPath(location)
    if not location or posix.is_absolute() or windows.anchor or ".." in (*posix.parts, *windows.parts):
        raise invalid(f"{what} refers to {location!r}; data files lie in the model's folder, {path.parent}")
    try:
        file = (path.parent / location).resolve()
        exists = file.is_file()
    except (OSError, ValueError, RuntimeError):  # a name that cannot be one, or links in a circle
        exists = False
    if not exists:
        raise BundleError(
            f"{what} refers to {location!r}, which is not a file in {path.parent}", remedy="Copy it beside the model."
        )
    if not any(file.is_relative_to(folder) for folder in (path.parent.resolve(), own.parent)):
        raise invalid(f"{what} refers to {location!r}, a link to {file}, outside the model's folder {path.parent}")
    return file


def _embed(tensor: onnx.TensorProto) -> None:
    """Replace a reference by the bytes it refers to."""
    place = _external(tensor)
    with Path(place["location"]).open("rb") as file:
        file.seek(int(place["offset"]))
        tensor.raw_data = file.read(int(place["length"]))
    tensor.ClearField("external_data")
    tensor.data_location = onnx.TensorProto.DEFAULT


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
    # As protobuf does: of several values the last one counts.
    raw = next((f for f in reversed(fields) if f.number == _TENSOR_RAW_DATA), None)
    head = b"".join(data[f.start : f.end] for f in fields if f.number != _TENSOR_RAW_DATA)
    tensor = onnx.TensorProto.FromString(head)
    if raw is None or tensor.data_type == onnx.TensorProto.STRING:
        return data[initializer.value : initializer.end]
    if not _is_reference(tensor):
        tensor.data_location = onnx.TensorProto.EXTERNAL
        _refer(tensor, location, {"offset": str(raw.value), "length": str(raw.end - raw.value)})
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


def _tensor_head(name: str, tensor: "ir.TensorProtocol") -> bytes:
    """Return a TensorProto up to the first byte of its raw data."""
    head = onnx.TensorProto(name=name, data_type=int(tensor.dtype), dims=tensor.shape.numpy())
    return bytes(head.SerializeToString()) + _tag(_TENSOR_RAW_DATA, tensor.nbytes)


def _check_limit(path: Path, size: int) -> None:
    if size > PROTOBUF_LIMIT_BYTES:
        raise OutputError(
            f"{path.name} would have {size} bytes; protobuf limits a file to {PROTOBUF_LIMIT_BYTES}",
            remedy="Use fewer classes or a larger channel divisor.",
        )
