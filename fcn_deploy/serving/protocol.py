"""The Open Inference Protocol, version 2: requests to pixels, labels to responses, and errors.

HTTP and gRPC share all of it. Binary tensors are not copied: they stay in the buffer they were received in.
"""

import math
import reprlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import chain
from typing import Annotated, Any

import msgspec
import numpy as np

from fcn_deploy.images import Labels, Pixels
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME

JSON_LENGTH_HEADER = "inference-header-content-length"
RETRY_AFTER_S = 1
_DATATYPE = "UINT8"
_CHANNELS = 3
_BINARY_SIZE = "binary_data_size"
_MAX_DIGITS = 12
_MAX_NAMES_SHOWN = 3

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxtuple = 8
# What a client sent, short enough to be sent back.
short_repr: Callable[[Any], str] = _SHORT.repr


class RequestError(Exception):
    """A request that is answered with an error, over HTTP and gRPC alike.

    Args:
        status: HTTP's status; gRPC's follows from it.
        problem: the value and the bound it broke.
        remedy: what the client can do.
    """

    def __init__(self, status: HTTPStatus, problem: str, remedy: str) -> None:
        super().__init__(f"{problem}. {remedy}")
        self.status = status


class ClientGoneError(Exception):
    """The client left before its request was answered."""


def bad_request(problem: str, remedy: str) -> RequestError:
    """Return the error for a request that is invalid."""
    return RequestError(HTTPStatus.BAD_REQUEST, problem, remedy)


def unavailable(problem: str) -> RequestError:
    """Return the error for a request that may succeed later."""
    return RequestError(HTTPStatus.SERVICE_UNAVAILABLE, problem, f"Try again after {RETRY_AFTER_S} s.")


def server_failure() -> RequestError:
    """Return the error for a failure of the server itself, which shows nothing of the cause."""
    return RequestError(
        HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed at this request", "Its log says more."
    )  # fmt: skip


@dataclass(frozen=True)
class InputTensor:
    """An input as a client sent it, with its values either as bytes or one by one.

    Attributes:
        name: as sent.
        datatype: as sent, e.g. `UINT8`.
        shape: as sent.
        raw: the values' bytes, row-major.
        values: the values as numbers, flat or in lists nested as `shape` says.
    """

    name: str
    datatype: str
    shape: Sequence[int]
    raw: bytes | memoryview | None = None
    values: Sequence[Any] = ()


@dataclass(frozen=True)
class InferRequest:
    """A request to label photos.

    Attributes:
        id: the client's name for it, or "".
        tensors: the inputs.
        binary: whether the client wants the labels as bytes rather than as JSON numbers.
    """

    id: str
    tensors: Sequence[InputTensor]
    binary: bool


class _JsonInput(msgspec.Struct):
    name: str
    datatype: str
    # Longer lists do not describe a request to this model.
    shape: Annotated[list[int], msgspec.Meta(max_length=16)]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _JsonOutput(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _JsonRequest(msgspec.Struct):
    inputs: Annotated[list[_JsonInput], msgspec.Meta(max_length=16)]
    id: Annotated[str, msgspec.Meta(max_length=200)] = ""
    parameters: dict[str, Any] = {}
    outputs: Annotated[list[_JsonOutput], msgspec.Meta(max_length=16)] = []


_JSON_REQUEST = msgspec.json.Decoder(_JsonRequest)


def decode_request(body: bytes | bytearray, json_length: str | None) -> InferRequest:
    """Decode the body of an HTTP request.

    Args:
        body: JSON, after which binary tensors may follow.
        json_length: the header that says where the JSON ends; None when the body is all JSON.

    Raises:
        RequestError: it is no request of the protocol.
    """
    content = memoryview(body)
    end = len(body) if json_length is None else _json_end(json_length, len(body))
    try:
        request = _JSON_REQUEST.decode(content[:end])
    except (ValueError, RecursionError) as error:
        raise bad_request(
            f"the JSON is no inference request: {error}", "See the Open Inference Protocol."
        ) from None  # fmt: skip
    check_outputs([output.name for output in request.outputs])
    if request.outputs:
        binary = request.outputs[0].parameters.get("binary_data") is True
    else:
        binary = request.parameters.get("binary_data_output") is True
    return InferRequest(request.id, _tensors(request.inputs, content[end:]), binary)


def check_outputs(names: Sequence[str]) -> None:
    """Check the outputs a client asks for by name; none means all.

    Raises:
        RequestError: the model has no such output.
    """
    if any(name != LABELS_NAME for name in names):
        listed = ", ".join(short_repr(name) for name in names[:_MAX_NAMES_SHOWN])
        raise bad_request(f"outputs {listed}: the model has one, {LABELS_NAME}", "Ask for the model's metadata.")


def _json_end(text: str, length: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) <= length):
        raise bad_request(
            f"{JSON_LENGTH_HEADER} {short_repr(text)} is not between 0 and the body's {length} bytes",
            "Send the number of bytes of the JSON in front of the tensors.",
        )
    return int(text)


def _tensors(inputs: Sequence[_JsonInput], binary: memoryview) -> list[InputTensor]:
    """Return the inputs with their values, each from the JSON or from its part of `binary`."""
    tensors, start = [], 0
    for tensor in inputs:
        size = tensor.parameters.get(_BINARY_SIZE)
        if (size is None) == (tensor.data is None):
            raise bad_request(
                f"input {short_repr(tensor.name)} has {'no values' if size is None else 'values twice'}",
                f"Send either data or the parameter {_BINARY_SIZE}.",
            )
        if size is None:
            tensors.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, values=tensor.data or ()))
            continue
        if type(size) is not int or not 0 <= size <= len(binary) - start:
            raise bad_request(
                f"{_BINARY_SIZE} {short_repr(size)} of input {short_repr(tensor.name)}: "
                f"{len(binary) - start} bytes follow",
                "Send as many as it says; the request may have been cut off.",
            )
        tensors.append(InputTensor(tensor.name, tensor.datatype, tensor.shape, binary[start : start + size]))
        start += size
    if start != len(binary):
        raise bad_request(
            f"{len(binary) - start} bytes belong to no input", f"Say what they are with {_BINARY_SIZE}."
        )  # fmt: skip
    return tensors


@dataclass(frozen=True)
class ModelInterface:
    """The input and output of every served model: `pixels` n x H x W x 3 RGB to `labels` n x H x W, both UINT8.

    Attributes:
        batch: N, the largest n; smaller ones are filled up.
        height: H, pixels.
        width: W, pixels.
    """

    batch: int
    height: int
    width: int

    @property
    def inputs(self) -> list[dict[str, Any]]:
        """The input as the protocol describes it; -1 for 1 to N photos."""
        return [{"name": PIXELS_NAME, "datatype": _DATATYPE, "shape": [self._declared_batch, *self._photo_shape]}]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The output as the protocol describes it."""
        return [{"name": LABELS_NAME, "datatype": _DATATYPE, "shape": [self._declared_batch, self.height, self.width]}]

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the largest input."""
        return self.batch * math.prod(self._photo_shape)

    @property
    def _photo_shape(self) -> tuple[int, int, int]:
        return self.height, self.width, _CHANNELS

    @property
    def _declared_batch(self) -> int:
        return 1 if self.batch == 1 else -1

    def pixels(self, tensors: Sequence[InputTensor]) -> Pixels:
        """Return the n x H x W x 3 pixels of a request; name, type and shape are checked before any value is read.

        Raises:
            RequestError: they do not fit, or the values are too few, too many, or no whole numbers from 0 to 255.
        """
        if [tensor.name for tensor in tensors] != [PIXELS_NAME]:
            names = ", ".join(short_repr(tensor.name) for tensor in tensors[:_MAX_NAMES_SHOWN]) or "none"
            raise bad_request(f"inputs {names}: the model has one, {PIXELS_NAME}", "Ask for the model's metadata.")
        (tensor,) = tensors
        if tensor.datatype != _DATATYPE:
            raise bad_request(
                f"datatype {short_repr(tensor.datatype)} of {PIXELS_NAME}: it is {_DATATYPE}",
                "Send RGB values from 0 to 255 as files have them.",
            )
        self._check_shape(tensor.shape)
        raw = _bytes_of(tensor) if tensor.raw is None else tensor.raw
        if len(raw) != math.prod(tensor.shape):
            raise _wrong_count(tensor.shape, len(raw))
        return np.frombuffer(raw, np.uint8).reshape(tuple(tensor.shape))

    def _check_shape(self, shape: Sequence[int]) -> None:
        if tuple(shape[1:]) == self._photo_shape and 1 <= shape[0] <= self.batch:
            return
        count = "1" if self.batch == 1 else f"1..{self.batch}"
        raise bad_request(
            f"shape {short_repr(list(shape))} of {PIXELS_NAME}: it is [{count}, {self.height}, {self.width}, 3]",
            "Resize the photo first, or post its file to /segment.",
        )


def _bytes_of(tensor: InputTensor) -> bytes:
    values = _flat(tensor.values, tensor.shape)
    if len(values) != math.prod(tensor.shape):
        raise _wrong_count(tensor.shape, len(values))
    try:
        # bool is a subclass of int, and a float would have to be rounded.
        if set(map(type, values)) <= {int}:
            return bytes(values)
    except ValueError:  # a number below 0 or above 255
        pass
    raise bad_request(
        f"values of {PIXELS_NAME} are not all whole numbers from 0 to 255", "Send them as files have them."
    )


def _flat(values: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
    """Return values in row-major order; they may be flat already."""
    if not values or not isinstance(values[0], list):
        return values
    for length in shape[1:]:
        if not all(isinstance(row, list) and len(row) == length for row in values):
            raise bad_request(
                f"the lists of {PIXELS_NAME} are not nested as its shape {short_repr(list(shape))} says",
                "Nest them row by row, or send a flat list.",
            )
        values = list(chain.from_iterable(values))
    return values


def _wrong_count(shape: Sequence[int], count: int) -> RequestError:
    return bad_request(
        f"{count} values for {PIXELS_NAME} of shape {list(shape)}, which has {math.prod(shape)}",
        "Send as many; the request may have been cut off.",
    )


@dataclass(frozen=True)
class InferResult:
    """The labels of a request.

    Attributes:
        labels: n x H x W uint8.
        queue_s: seconds from its arrival to the beginning of its run.
        run_s: seconds of its run, of the model alone.
    """

    labels: Labels
    queue_s: float
    run_s: float

    @property
    def parameters(self) -> dict[str, int]:
        """Microseconds of waiting and of running, by the names the response has them under."""
        return {"queue_us": int(self.queue_s * 1e6), "run_us": int(self.run_s * 1e6)}

    @property
    def output(self) -> dict[str, Any]:
        """Name, type and shape of the labels."""
        return {"name": LABELS_NAME, "datatype": _DATATYPE, "shape": list(self.labels.shape)}


def response_id(request_id: str) -> str:
    """Return the client's id for a request, or a new one when it has none."""
    return request_id or str(uuid.uuid4())


def encode_response(
    model_name: str, request_id: str, result: InferResult, *, binary: bool
) -> tuple[bytes, dict[str, str]]:
    """Encode labels as the body of an HTTP response, as bytes or as JSON numbers, and return it with its headers."""
    labels = result.labels
    values = {"parameters": {_BINARY_SIZE: labels.size}} if binary else {"data": labels.ravel().tolist()}
    head = msgspec.json.encode(
        {
            "id": response_id(request_id),
            "model_name": model_name,
            "outputs": [result.output | values],
            "parameters": result.parameters,
        }
    )
    if not binary:
        return head, {"content-type": "application/json"}
    headers = {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(head))}
    return b"".join((head, labels.data)), headers
