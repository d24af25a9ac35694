"""What every served model takes and gives, whatever ends its artifact has: pixels in, labels out."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np

from fcn_deploy.images import Pixels
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME
from fcn_deploy.serving.refusals import Refusal, bad_request, shown

DATATYPE = "UINT8"
CHANNELS = 3


@dataclass(frozen=True)
class Tensor:
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
class Interface:
    """The shapes a model is served with: `pixels` UINT8 n x H x W x 3, RGB, to `labels` UINT8 n x H x W.

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
        return [{"name": PIXELS_NAME, "datatype": DATATYPE, "shape": [self._n, *self.photo_shape]}]

    @property
    def outputs(self) -> list[dict[str, Any]]:
        """The output as the protocol describes it."""
        return [{"name": LABELS_NAME, "datatype": DATATYPE, "shape": [self._n, self.height, self.width]}]

    @property
    def photo_shape(self) -> tuple[int, int, int]:
        """H, W, 3."""
        return self.height, self.width, CHANNELS

    @property
    def tensor_bytes(self) -> int:
        """Of the largest input."""
        return self.batch * math.prod(self.photo_shape)

    @property
    def _n(self) -> int:
        return 1 if self.batch == 1 else -1

    def pixels(self, tensors: Sequence[Tensor]) -> Pixels:
        """N x H x W x 3 pixels of a request; nothing is allocated before name, type and shape are known to fit.

        Raises:
            Refusal: they do not, or the values are too few, too many, or no numbers from 0 to 255.
        """
        if [tensor.name for tensor in tensors] != [PIXELS_NAME]:
            names = ", ".join(shown(tensor.name) for tensor in tensors[:CHANNELS]) or "none"
            raise bad_request(f"inputs {names}: the model takes one, {PIXELS_NAME}", "Ask for the model's metadata.")
        (tensor,) = tensors
        if tensor.datatype != DATATYPE:
            raise bad_request(
                f"datatype {shown(tensor.datatype)} of {PIXELS_NAME}: it is {DATATYPE}",
                "Send RGB values from 0 to 255 as files have them.",
            )
        self._check_shape(tensor.shape)
        raw = _bytes(tensor) if tensor.raw is None else tensor.raw
        if len(raw) != math.prod(tensor.shape):
            raise _wrong_size(tensor.shape, len(raw))
        return np.frombuffer(raw, np.uint8).reshape(tuple(tensor.shape))

    def _check_shape(self, shape: Sequence[int]) -> None:
        if tuple(shape[1:]) == self.photo_shape and 1 <= shape[0] <= self.batch:
            return
        n = "1" if self.batch == 1 else f"1..{self.batch}"
        height, width, channels = self.photo_shape
        raise bad_request(
            f"shape {shown(list(shape))} of {PIXELS_NAME}: it is [{n}, {height}, {width}, {channels}]",
            "Resize the photo first, or post its file to /segment.",
        )


def _bytes(tensor: Tensor) -> bytes:
    values = _flat(tensor.values, tensor.shape)
    if len(values) != math.prod(tensor.shape):
        raise _wrong_size(tensor.shape, len(values))
    try:
        # bool is a subclass of int, and a float would have to be rounded.
        if set(map(type, values)) <= {int}:
            return bytes(values)
    except ValueError:  # a number that is no byte
        pass
    raise bad_request(
        f"values of {PIXELS_NAME} are not all whole numbers from 0 to 255", "Send them as files have them."
    )


def _flat(values: Sequence[Any], shape: Sequence[int]) -> Sequence[Any]:
    """Values in row-major order; they may come flat already."""
    if not values or not isinstance(values[0], list):
        return values
    for length in shape[1:]:
        if not all(isinstance(row, list) and len(row) == length for row in values):
            raise bad_request(
                f"the lists of {PIXELS_NAME} are not nested as its shape {shown(list(shape))} says",
                "Nest them row by row, or send a flat list.",
            )
        values = list(chain.from_iterable(values))
    return values


def _wrong_size(shape: Sequence[int], count: int) -> Refusal:
    return bad_request(
        f"{count} values for {PIXELS_NAME} of shape {list(shape)}, which has {math.prod(shape)}",
        "Send as many; the request may have been cut off.",
    )
