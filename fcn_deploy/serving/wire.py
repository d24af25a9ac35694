"""A request to infer, as HTTP brings it: JSON, after which binary tensors may follow.

Binary tensors stay where they are: KServe's own reader makes a list of Python numbers of each, which takes longer than
the network.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fcn_deploy.model_info import LABELS_NAME
from fcn_deploy.serving.refusals import bad_request, shown
from fcn_deploy.serving.tensors import Tensor

JSON_LENGTH_HEADER = "inference-header-content-length"
_BINARY_SIZE = "binary_data_size"
_MOST_DIGITS = 12
# Of a list in a request's head; what is longer is no request to this model, and reporting each entry would take long.
_MOST_ENTRIES = 16
_MOST_ERRORS = 3


class _Part(BaseModel):
    model_config = ConfigDict(strict=True)


class _Input(_Part):
    name: str
    datatype: str
    shape: Annotated[list[int], Field(max_length=_MOST_ENTRIES)]
    parameters: dict[str, Any] = {}
    data: list[Any] | None = None


class _Output(_Part):
    name: str
    parameters: dict[str, Any] = {}


class _Request(_Part):
    id: Annotated[str, Field(max_length=200)] = ""
    parameters: dict[str, Any] = {}
    inputs: Annotated[list[_Input], Field(max_length=_MOST_ENTRIES)]
    outputs: Annotated[list[_Output], Field(max_length=_MOST_ENTRIES)] = []


@dataclass(frozen=True)
class Call:
    """What was asked for.

    Attributes:
        id: the client's name for it, or "".
        tensors: the inputs.
        binary: whether the labels are wanted as bytes rather than as JSON numbers.
    """

    id: str
    tensors: tuple[Tensor, ...]
    binary: bool


def read_call(body: bytes, json_length: str | None) -> Call:
    """Read a request's body; `json_length` is the header that says where its JSON ends, None when it is all JSON.

    Raises:
        Refusal: it is no request of the protocol.
    """
    end = len(body) if json_length is None else _json_end(json_length, len(body))
    try:
        request = _Request.model_validate_json(body[:end])
    except ValidationError as error:
        raise bad_request(
            f"the JSON is no inference request: {_told(error)}", "See the Open Inference Protocol."
        ) from None
    check_outputs([output.name for output in request.outputs])
    return Call(request.id, _tensors(request.inputs, memoryview(body)[end:]), _wants_binary(request))


def check_outputs(names: Sequence[str]) -> None:
    """Check the outputs a client asks for by name; none means all.

    Raises:
        Refusal: the model has no such output.
    """
    if any(name != LABELS_NAME for name in names):
        listed = ", ".join(shown(name) for name in names[:_MOST_ERRORS])
        raise bad_request(f"outputs {listed}: the model gives one, {LABELS_NAME}", "Ask for the model's metadata.")


def _json_end(text: str, length: int) -> int:
    if not (text.isascii() and text.isdigit() and len(text) <= _MOST_DIGITS and int(text) <= length):
        raise bad_request(
            f"{JSON_LENGTH_HEADER} {shown(text)} is not between 0 and the body's {length} bytes",
            "Send the number of bytes of the JSON in front of the tensors.",
        )
    return int(text)


def _tensors(inputs: Sequence[_Input], rest: memoryview) -> tuple[Tensor, ...]:
    found, start = [], 0
    for given in inputs:
        size = given.parameters.get(_BINARY_SIZE)
        if (size is None) == (given.data is None):
            raise bad_request(
                f"input {shown(given.name)} has {'no values' if size is None else 'values twice'}",
                f"Send either data or the parameter {_BINARY_SIZE}.",
            )
        if size is None:
            found.append(Tensor(given.name, given.datatype, given.shape, values=given.data or ()))
            continue
        if type(size) is not int or not 0 <= size <= len(rest) - start:
            raise bad_request(
                f"{_BINARY_SIZE} {shown(size)} of input {shown(given.name)}: {len(rest) - start} bytes follow",
                "Send as many as it says; the request may have been cut off.",
            )
        found.append(Tensor(given.name, given.datatype, given.shape, raw=rest[start : start + size]))
        start += size
    if start != len(rest):
        raise bad_request(f"{len(rest) - start} bytes belong to no input", f"Say what they are with {_BINARY_SIZE}.")
    return tuple(found)


def _wants_binary(request: _Request) -> bool:
    if request.outputs:
        return request.outputs[0].parameters.get("binary_data") is True
    return request.parameters.get("binary_data_output") is True


def _told(error: ValidationError) -> str:
    found = error.errors(include_url=False, include_input=False, include_context=False)[:_MOST_ERRORS]
    return "; ".join(f"{'.'.join(map(str, one['loc']))} {one['msg']}".strip() for one in found)
