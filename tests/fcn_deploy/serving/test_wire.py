"""Requests as bytes: whatever comes is either pixels that fit or a refusal, never anything else."""

import contextlib
import json
import struct
from typing import Any

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from fcn_deploy.serving.protocol import ModelInterface, RequestError

INTERFACE = ModelInterface(2, 2, 3)
JSON = st.recursive(
    st.none() | st.booleans() | st.integers(-300, 300) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)
TENSORS = st.fixed_dictionaries(
    {},
    optional={
        "name": st.just("pixels") | JSON,
        "datatype": st.just("UINT8") | JSON,
        "shape": st.lists(st.integers(-1, 3), max_size=5) | st.just([1, 2, 3, 3]) | JSON,
        "parameters": st.fixed_dictionaries({"binary_data_size": st.integers(-1, 40) | JSON}) | JSON,
        "data": st.lists(st.integers(0, 255), min_size=18, max_size=18) | JSON,
    },
)
REQUESTS = st.fixed_dictionaries(
    {"inputs": st.lists(TENSORS, max_size=3) | JSON},
    optional={"id": JSON, "outputs": JSON, "parameters": JSON},
)


def answered(body: bytes, length: str | None) -> None:
    with contextlib.suppress(RequestError):
        pixels = INTERFACE.decode(body, length).pixels
        assert pixels.dtype == np.uint8
        assert pixels.shape[1:] == (2, 3, 3)
        assert 1 <= len(pixels) <= 2


@settings(max_examples=300, deadline=None)
@given(REQUESTS, st.binary(max_size=40), st.booleans())
def test_any_json_and_any_bytes_after_it(request: Any, rest: bytes, binary: bool) -> None:
    head = json.dumps(request).encode()
    answered(head + rest if binary else head, str(len(head)) if binary else None)


@settings(max_examples=200, deadline=None)
@given(st.binary(max_size=60), st.none() | st.text(max_size=8) | st.integers(0, 70).map(str))
def test_any_bytes_and_any_length(body: bytes, length: str | None) -> None:
    answered(body, length)


@settings(max_examples=50, deadline=None)
@given(st.integers(1, 2), st.randoms(use_true_random=False))
def test_all_ways_to_send_pixels_are_the_same(count: int, random: Any) -> None:
    pixels = np.array([random.randrange(256) for _ in range(count * 18)], np.uint8).reshape(count, 2, 3, 3)
    tensor = {"name": "pixels", "datatype": "UINT8", "shape": list(pixels.shape)}
    for data in (pixels.ravel().tolist(), pixels.tolist()):
        body = json.dumps({"inputs": [tensor | {"data": data}]}).encode()
        assert np.array_equal(INTERFACE.decode(body, None).pixels, pixels)
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": pixels.size}}]}).encode()
    sent = head + struct.pack(f"{pixels.size}B", *pixels.ravel())
    assert np.array_equal(INTERFACE.decode(sent, str(len(head))).pixels, pixels)
