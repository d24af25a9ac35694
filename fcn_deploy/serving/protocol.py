"""The Open Inference Protocol, version 2, as HTTP and gRPC share it: requests to pixels, labels to responses, errors.

Binary tensors are not copied: they stay in the buffer they were received in.
"""

import logging
import math
import re
import reprlib
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from typing import Annotated, Any, NamedTuple

import msgspec
import numpy as np

from fcn_deploy.images import Labels, Pixels
from fcn_deploy.installation import __version__
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME

SERVER_METADATA = {"name": "fcn-deploy", "version": __version__, "extensions": ["binary_tensor_data"]}
JSON_LENGTH_HEADER = "inference-header-content-length"
RETRY_AFTER_S = 1
_LOGGER = logging.getLogger("fcn_deploy.serving")
_DATATYPE = "UINT8"
_BINARY_SIZE = "binary_data_size"
_MAX_DIGITS = 12
_MAX_NAMES_SHOWN = 3
_METADATA_REMEDY = "See the model's metadata."

_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 60
_SHORT.maxlist = _SHORT.maxtuple = 8
# Limit for client values that are quoted in messages.
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


def server_failure(request: str, error: Exception) -> RequestError:
    """Log an unexpected error in one line, and return the error for the client, which shows nothing of the cause."""
    _LOGGER.error("%s: %s: %s", request, type(error).__name__, error)
    return RequestError(HTTPStatus.INTERNAL_SERVER_ERROR, "the server failed at this request", "See the server's log.")


_Byte = Annotated[int, msgspec.Meta(ge=0, le=255)]
# Longer lists do not describe a request to this model.
_FewItems = msgspec.Meta(max_length=16)
_NO_DATA = msgspec.Raw(), msgspec.Raw(b"null")


class _JsonInput(msgspec.Struct):
    name: str
    datatype: str
    shape: Annotated[list[int], _FewItems]
    parameters: dict[str, Any] = {}
    data: msgspec.Raw = _NO_DATA[0]


class _JsonOutput(msgspec.Struct):
    name: str
    parameters: dict[str, Any] = {}


class _JsonRequest(msgspec.Struct):
    inputs: Annotated[list[_JsonInput], _FewItems]
    id: Annotated[str, msgspec.Meta(max_length=200)] = ""
    parameters: dict[str, Any] = {}
    outputs: Annotated[list[_JsonOutput], _FewItems] = []


_REQUEST_DECODER = msgspec.json.Decoder(_JsonRequest)
_FLAT_DECODER = msgspec.json.Decoder(list[_Byte])
_NESTED_DECODER = msgspec.json.Decoder(list[list[list[list[_Byte]]]])


class InferRequest(NamedTuple):
    """A request over HTTP."""

    id: str  # or ""
    pixels: Pixels  # n x H x W x 3
    binary: bool  # whether it asks for labels as bytes, not as JSON numbers


@dataclass(frozen=True)
class ModelInterface:
    """The input and output of every served model: `pixels` n x H x W x 3 RGB to `labels` n x H x W, both UINT8."""

    batch: int  # N, the largest n; smaller requests are padded
    height: int  # H, pixels
    width: int  # W, pixels

    def describe(self) -> dict[str, list[dict[str, Any]]]:
        """Return inputs and outputs as the protocol describes them; -1 stands for 1 to N photos."""
        shape = [1 if self.batch == 1 else -1, self.height, self.width]
        return {
            "inputs": [{"name": PIXELS_NAME, "datatype": _DATATYPE, "shape": [*shape, 3]}],
            "outputs": [{"name": LABELS_NAME, "datatype": _DATATYPE, "shape": shape}],
        }

    @property
    def tensor_bytes(self) -> int:
        """Bytes of the largest input."""
        return self.batch * self.height * self.width * 3

    def decode(self, body: bytes | memoryview, json_length: str | None) -> InferRequest:
        """Decode the body of an HTTP request.

        Args:
            body: JSON, after which a binary tensor may follow.
            json_length: the header that says where the JSON ends; None when the body is all JSON.

        Raises:
            RequestError: it is no request to this model.
        """
        content = memoryview(body)
        end = len(body) if json_length is None else _json_end(json_length, len(body))
        try:
            request = _REQUEST_DECODER.decode(content[:end])
        except (ValueError, RecursionError) as error:
            problem = f"the JSON is not a valid inference request: {error}"
            raise bad_request(problem, "See the Open Inference Protocol.") from None
        check_outputs(request.outputs)
        if request.outputs:
            binary = request.outputs[0].parameters.get("binary_data")
        else:
            binary = request.parameters.get("binary_data_output")
        pixels = self.pixels(request.inputs, partial(_json_values, binary=content[end:]))
        return InferRequest(request.id, pixels, binary is True)

    def pixels(self, inputs: Sequence[Any], values: Callable[[Any], bytes | memoryview]) -> Pixels:
        """Return the n x H x W x 3 pixels of a request.

        Args:
            inputs: each with a `name`, a `datatype` and a `shape`.
            values: returns the values of an input as bytes, row-major, or raises a ValueError when they are not;
                called only when its shape is right.

        Raises:
            RequestError: name, type or shape are not the model's, or the values are too few or too many.
        """
        if [tensor.name for tensor in inputs] != [PIXELS_NAME]:
            raise bad_request(f"inputs {_names(inputs)}: the model has one, {PIXELS_NAME}", _METADATA_REMEDY)
        datatype, shape = inputs[0].datatype, list(inputs[0].shape)
        if datatype != _DATATYPE:
            problem = f"datatype {short_repr(datatype)} of {PIXELS_NAME}: expected {_DATATYPE}"
            raise bad_request(problem, "Send unscaled RGB values from 0 to 255.")
        if shape[1:] != [self.height, self.width, 3] or not 1 <= shape[0] <= self.batch:
            count = "1" if self.batch == 1 else f"1..{self.batch}"
            raise bad_request(
                f"shape {short_repr(shape)} of {PIXELS_NAME}: expected [{count}, {self.height}, {self.width}, 3]",
                "Resize the photo first, or post its file to /segment.",
            )
        try:
            raw = values(inputs[0])
        except (ValueError, RecursionError) as error:
            problem = f"values of {PIXELS_NAME} are not all whole numbers from 0 to 255, flat or nested in 4 levels"
            raise bad_request(f"{problem}: {error}", "Send them as files have them.") from None
        if len(raw) != math.prod(shape):
            raise bad_request(
                f"{len(raw)} values for {PIXELS_NAME} of shape {shape}, which has {math.prod(shape)}",
                "Send as many as the shape has; the request may have been cut off.",
            )
        return np.frombuffer(raw, np.uint8).reshape(shape)


def check_outputs(outputs: Sequence[Any]) -> None:
    """Raise a `RequestError` when a client asks for outputs that the model does not have; none means all."""
    if any(output.name != LABELS_NAME for output in outputs):
        raise bad_request(f"outputs {_names(outputs)}: the model has one, {LABELS_NAME}", _METADATA_REMEDY)


def _names(tensors: Sequence[Any]) -> str:
    return ", ".join(short_repr(tensor.name) for tensor in tensors[:_MAX_NAMES_SHOWN]) or "none"


def _json_end(text: str, length: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MAX_DIGITS and int(text) <= length):
        raise bad_request(
            f"{JSON_LENGTH_HEADER} {short_repr(text)} is not between 0 and the body's {length} bytes",
            "Send the number of bytes of the JSON that precedes the tensors.",
        )
    return int(text)


def _json_values(tensor: _JsonInput, binary: memoryview) -> bytes | memoryview:
    """Return the values of a request's only input, from its JSON or from the bytes after it."""
    size = tensor.parameters.get(_BINARY_SIZE)
    if (size is None) == (tensor.data in _NO_DATA):
        raise bad_request(
            f"input {tensor.name!r} has {'no values' if size is None else 'values twice'}",
            f"Send either data or the parameter {_BINARY_SIZE}.",
        )
    if size is not None and (type(size) is not int or not 0 <= size <= len(binary)):
        raise bad_request(
            f"{_BINARY_SIZE} {short_repr(size)} of input {tensor.name!r}: {len(binary)} bytes follow",
            "Send that many bytes; the request may have been cut off.",
        )
    if unused := len(binary) - (size or 0):
        raise bad_request(f"{unused} bytes belong to no input", f"Declare them with {_BINARY_SIZE}.")
    return _decode_numbers(tensor.data, tensor.shape) if size is None else binary


def _decode_numbers(data: msgspec.Raw, shape: Sequence[int]) -> bytes | memoryview:
    """Return JSON numbers as bytes; they may be flat, or nested as the shape says."""
    if not re.match(rb"\[\s*\[", memoryview(data)):
        return bytes(_FLAT_DECODER.decode(data))
    values = np.array(_NESTED_DECODER.decode(data), np.uint8)  # raises when the lists' lengths differ
    if values.shape != tuple(shape):
        raise bad_request(
            f"the lists of {PIXELS_NAME} are not nested as its shape {short_repr(list(shape))} says",
            "Nest them row by row, or send a flat list.",
        )
    return values.reshape(-1).data


@dataclass(frozen=True)
class InferResult:
    """The labels of a request."""

    labels: Labels  # n x H x W uint8
    queue_s: float  # seconds from its arrival to the beginning of its run
    run_s: float  # seconds of its run, of the model alone

    def describe(self, model_name: str, request_id: str) -> dict[str, Any]:
        """Return the response but for the labels themselves; a request without id gets one."""
        return {
            "id": request_id or str(uuid.uuid4()),
            "model_name": model_name,
            "parameters": {"queue_us": int(self.queue_s * 1e6), "run_us": int(self.run_s * 1e6)},
            "outputs": [{"name": LABELS_NAME, "datatype": _DATATYPE, "shape": list(self.labels.shape)}],
        }

    def encode(self, model_name: str, request_id: str, *, binary: bool) -> tuple[bytes, dict[str, str]]:
        """Return the body of an HTTP response and its headers, with the labels as bytes or as JSON numbers."""
        response = self.describe(model_name, request_id)
        if not binary:
            response["outputs"][0]["data"] = self.labels.ravel().tolist()
            return msgspec.json.encode(response), {"content-type": "application/json"}
        response["outputs"][0]["parameters"] = {_BINARY_SIZE: self.labels.size}
        head = msgspec.json.encode(response)
        headers = {"content-type": "application/octet-stream", JSON_LENGTH_HEADER: str(len(head))}
        return b"".join((head, self.labels.data)), headers
