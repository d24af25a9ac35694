"""Requests that are not answered with labels: what they are told, and that the next one is answered."""

import json
import struct
import threading
import zlib
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

import fcn_deploy as fd
from fcn_deploy.runtime.base import Arrays
from fcn_deploy.segmentation import Segmenter
from tests.fcn_deploy.serving.clients import (
    INFER,
    address,
    binary_request,
    call,
    exposed,
    grpc_client,
    grpc_infer,
    http_client,
    http_infer,
    json_request,
    noise,
)
from tests.fcn_deploy.serving.conftest import OPTIONS
from tests.messages import states

PIXELS = noise()
LENGTH = "Inference-Header-Content-Length"
EVERYWHERE = ".".join("0000")
TENSOR = {"name": "pixels", "shape": [1, 96, 96, 3], "datatype": "UINT8"}


@pytest.fixture(autouse=True)
def _the_next_request_is_answered(server: fd.Server) -> Iterator[None]:
    yield
    with http_client(server) as client:
        assert http_infer(client, PIXELS).shape == (1, 96, 96)


def head(**changed: Any) -> bytes:
    return json.dumps({"inputs": [TENSOR | changed]}).encode()


@pytest.mark.parametrize(("changed", "message"), [
    ({"name": "image"}, "inputs 'image': the model has one, pixels"),
    ({"name": "x" * 500}, "xxx': the model has one, pixels"),
    ({"datatype": "FP32"}, "datatype 'FP32' of pixels: expected UINT8"),
    ({"shape": [1, 96, 96]}, "shape [1, 96, 96] of pixels: expected [1, 96, 96, 3]"),
    ({"shape": [2, 96, 96, 3]}, "shape [2, 96, 96, 3] of pixels"),
    ({"shape": [0, 96, 96, 3]}, "shape [0, 96, 96, 3] of pixels"),
    ({"shape": [-1, 96, 96, 3]}, "shape [-1, 96, 96, 3] of pixels"),
    ({"shape": [1, 3, 96, 96]}, "Resize the photo first, or post its file to /segment."),
    ({"shape": [10**15, 96, 96, 3]}, "shape [1000000000000000, 96, 96, 3] of pixels"),
    ({"shape": [1] * 100}, "Expected `array` of length <= 16 - at `$.inputs[0].shape`"),
    ({"shape": "many"}, "Expected `array`, got `str` - at `$.inputs[0].shape`"),
    ({"parameters": {"binary_data_size": 5}}, "27643 bytes belong to no input"),
    ({"parameters": {"binary_data_size": 27649}}, "binary_data_size 27649 of input 'pixels': 27648 bytes follow"),
    ({"parameters": {"binary_data_size": -1}}, "binary_data_size -1 of input 'pixels'"),
    ({"parameters": {"binary_data_size": True}}, "binary_data_size True of input 'pixels'"),
    ({"parameters": {}}, "input 'pixels' has no values"),
    ({"parameters": {}, "data": None}, "input 'pixels' has no values"),
    ({"data": [1]}, "input 'pixels' has values twice"),
])  # fmt: skip
def test_a_wrong_tensor(server: fd.Server, changed: dict[str, Any], message: str) -> None:
    status, answer, _ = call(server, INFER, *binary_request(PIXELS, **changed))

    assert status == 400
    assert message in answer["error"]
    assert answer.keys() == {"error"}
    assert len(answer["error"]) < 300


@pytest.mark.parametrize(("data", "message"), [
    ([], "0 values for pixels of shape [1, 96, 96, 3], which has 27648"),
    ([1, 2, 3], "3 values for pixels of shape [1, 96, 96, 3], which has 27648"),
    ([256] * 27648, "values of pixels are not all whole numbers from 0 to 255"),
    ([-1] * 27648, "values of pixels are not all whole numbers"),
    ([1.0] * 27648, "values of pixels are not all whole numbers"),
    ([True] * 27648, "values of pixels are not all whole numbers"),
    (["1"] * 27648, "values of pixels are not all whole numbers"),
    ([None] * 27648, "values of pixels are not all whole numbers"),
    ([[[[1, 2, 3]] * 96] * 95], "not nested as its shape [1, 96, 96, 3] says"),
    ([[1, 2], 3], "Expected `array`, got `int` - at `$[0][0]`"),
    ({"a": 1}, "Expected `array`, got `object`"),
])  # fmt: skip
def test_wrong_values_as_json(server: fd.Server, data: Any, message: str) -> None:
    status, answer, _ = call(server, INFER, json_request(PIXELS, data=data))

    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(("body", "headers", "message"), [
    (b"", {}, "the JSON is not a valid inference request"),
    (b"{", {}, "Input data was truncated"),
    (b"[]", {}, "the JSON is not a valid inference request"),
    (b"\xff\xfe", {}, "JSON is malformed"),
    (b'{"inputs": []}', {}, "inputs none: the model has one, pixels"),
    (b'{"inputs": {}}', {}, "Expected `array`, got `object` - at `$.inputs`"),
    (b'{"inputs": [' + b"1," * 10_000 + b"1]}", {}, "inputs"),
    (b"[" * 10_000, {}, "the JSON is not a valid inference request"),
    (b'{"parameters": {"a": ' + b"[" * 100_000, {}, "the JSON is not a valid inference request"),
    (b'{"inputs": [{"name": "\xff"}]}', {}, "the JSON is not a valid inference request"),
    (b'{"id": 7, "inputs": []}', {}, "Expected `str`, got `int` - at `$.id`"),
    (head(data=[])[:-1] + b', "outputs": [{"name": "logits"}]}', {}, "outputs 'logits': the model has one, labels"),
    (head() + b"abc", {LENGTH: "-5"}, "inference-header-content-length '-5' is not between 0 and the body's"),
    (head() + b"abc", {LENGTH: "9" * 30}, "is not between 0 and the body's"),
    (head() + b"abc", {LENGTH: "12.5"}, "is not between 0 and the body's"),
    (head() + b"abc", {LENGTH: "5"}, "Input data was truncated"),
])  # fmt: skip
def test_a_body_that_is_no_request(server: fd.Server, body: bytes, headers: dict[str, str], message: str) -> None:
    status, answer, _ = call(server, INFER, body, headers)

    assert status == 400
    assert message in answer["error"]


def test_a_body_that_was_cut_off(server: fd.Server) -> None:
    body, headers = binary_request(PIXELS)

    status, answer, _ = call(server, INFER, body[:-100], headers)

    assert status == 400
    assert "binary_data_size 27648 of input 'pixels': 27548 bytes follow" in answer["error"]
    assert "cut off" in answer["error"]


@pytest.mark.parametrize(("path", "method", "status", "message"), [
    ("/v2/models/other/infer", "POST", 404, "no model 'other' is served here. GET /v2/models lists it."),
    ("/v2/models/other", "GET", 404, "no model 'other' is served here"),
    ("/v2/models/other/ready", "GET", 404, "no model 'other' is served here"),
    ("/v2/repository/models/net/unload", "POST", 404, "Not Found. The model is below /v2/models."),
    ("/docs", "GET", 404, "GET '/docs': Not Found"),
    (INFER, "GET", 405, "Method Not Allowed"),
    ("/metrics", "DELETE", 405, "Method Not Allowed"),
])  # fmt: skip
def test_another_address(server: fd.Server, path: str, method: str, status: int, message: str) -> None:
    found, answer, _ = call(server, path, b"{}" if method == "POST" else None, method=method)

    assert found == status
    assert message in answer["error"]


def png(width: int, height: int) -> bytes:
    """A PNG of a few bytes that claims a size."""
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)), (b"IDAT", zlib.compress(b"")))
    parts = [struct.pack(">I", len(d)) + n + d + struct.pack(">I", zlib.crc32(n + d)) for n, d in chunks]
    return b"\x89PNG\r\n\x1a\n" + b"".join(parts)


@pytest.mark.parametrize(("body", "message"), [
    (b"", "the body is empty. Post a photo's file."),
    (b"hello", "image you sent (5 bytes): unknown image format. Use a PNG or JPEG file."),
    (png(20_000, 10_000), "image you sent claims 200000000 pixels; at most 25000000 are decoded"),
    (png(5_001, 5_000), "image you sent claims 5001x5000 pixels; at most 25000000 are decoded"),
    (png(60_000, 60_000), "at most 25000000 are decoded"),
    (png(64, 64), "image you sent is truncated or damaged"),
    (fd.SAMPLE_SCENE.read_bytes()[:5000], "image you sent is truncated or damaged"),
])  # fmt: skip
def test_a_file_that_is_no_photo(server: fd.Server, body: bytes, message: str) -> None:
    status, answer, _ = call(server, "/segment", body)

    assert status == 400
    assert message in answer["error"]


@pytest.mark.parametrize(("changed", "code", "message"), [
    ({"name": "image"}, "INVALID_ARGUMENT", "inputs 'image': the model has one, pixels"),
    ({"datatype": "FP32"}, "INVALID_ARGUMENT", "datatype 'FP32' of pixels: expected UINT8"),
    ({"shape": [10**15, 96, 96, 3]}, "INVALID_ARGUMENT", "shape [1000000000000000, 96, 96, 3] of pixels"),
    ({"shape": []}, "INVALID_ARGUMENT", "shape [] of pixels"),
    ({"raw": b"abc"}, "INVALID_ARGUMENT", "3 values for pixels of shape [1, 96, 96, 3], which has 27648"),
    ({"raw": None}, "INVALID_ARGUMENT", "0 values for pixels"),
    ({"raws": [b"", b""]}, "INVALID_ARGUMENT", "1 input and 2 raw contents"),
    ({"values": [256] * 27648, "raw": None}, "INVALID_ARGUMENT", "not all whole numbers from 0 to 255"),
    ({"model": "other"}, "NOT_FOUND", "no model 'other' is served here"),
    ({"raw": bytes(200_000)}, "RESOURCE_EXHAUSTED", "larger than max"),
])  # fmt: skip
def test_a_wrong_tensor_over_grpc(server: fd.Server, changed: dict[str, Any], code: str, message: str) -> None:
    messages = tritonclient.grpc.service_pb2
    raw = changed.get("raw", PIXELS.tobytes())
    request = messages.ModelInferRequest(
        model_name=changed.get("model", "net"),
        raw_input_contents=changed.get("raws", [] if raw is None else [raw]),
    )
    wanted = TENSOR | {key: value for key, value in changed.items() if key in TENSOR}
    given = request.inputs.add(**wanted)
    given.contents.uint_contents.extend(changed.get("values", []))
    with grpc_client(server) as client, pytest.raises(grpc.RpcError) as caught:
        client._client_stub.ModelInfer(request)

    assert caught.value.code().name == code
    assert message in caught.value.details()


def test_grpc_loads_and_unloads_nothing(server: fd.Server) -> None:
    with grpc_client(server) as client:
        for change in (client.load_model, client.unload_model):
            with pytest.raises(InferenceServerException, match="one model, which is always loaded"):
                change("net")
        assert np.array_equal(grpc_infer(client, PIXELS), grpc_infer(client, PIXELS))


def test_a_runtime_that_fails_is_the_servers_fault_and_shows_nothing_of_itself(
    shared_bundle: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Segmenter):
        runs = 0

        def run(self, feed: Arrays) -> Arrays:
            self.runs += 1
            if self.runs in (2, 3):  # the first is the warm-up
                raise RuntimeError("out of luck in /secret/place")
            return super().run(feed)

    monkeypatch.setattr("fcn_deploy.serving.model.Segmenter", Failing)
    with fd.Server(shared_bundle, OPTIONS) as failing, grpc_client(failing) as client:
        status, answer, _ = call(failing, INFER, *binary_request(PIXELS))
        with pytest.raises(InferenceServerException, match="the server failed at this request") as caught:
            grpc_infer(client, PIXELS)
        assert grpc_infer(client, PIXELS).shape == (1, 96, 96)
        text = exposed(failing)

    assert (status, answer) == (500, {"error": "the server failed at this request. See the server's log."})
    assert caught.value.status() == "StatusCode.INTERNAL"
    assert "secret" not in str(caught.value)
    lines = [record.getMessage() for record in caplog.records if record.name == "fcn_deploy.serving"]
    assert lines == [
        f"POST {INFER}: RuntimeError: out of luck in /secret/place",
        "/inference.GRPCInferenceService/ModelInfer: RuntimeError: out of luck in /secret/place",
    ]
    assert all(record.exc_info is None for record in caplog.records if record.name == "fcn_deploy.serving")
    for protocol in ("http", "grpc"):
        assert f'fcn_deploy_requests_total{{outcome="failed",protocol="{protocol}"}} 1.0' in text


def test_names_of_others_are_refused_on_a_loopback_address(server: fd.Server) -> None:
    """A page of evil.example whose name points to 127.0.0.1 must not reach the server through a visitor's browser."""
    port = address(server).rpartition(":")[2]
    for host in ("evil.example", f"evil.example:{port}", "127.0.0.1.evil.example", "[::1", "user@evil.example"):
        for path, body in (("/v2", None), (INFER, json_request(PIXELS))):
            status, answer, _ = call(server, path, body, {"Host": host})
            assert status == 421
            assert "evil" in answer["error"] or "[::1" in answer["error"]
            assert "--allow-host" in answer["error"]
    for host in ("localhost", f"LOCALHOST:{port}", f"127.0.0.1:{port}", f"[::1]:{port}"):
        assert call(server, "/v2", headers={"Host": host})[0] == 200


@pytest.mark.parametrize(("host", "allowed", "name", "expected"), [
    ("127.0.0.1", (), "evil.example", False), ("127.0.0.1", ("good.example",), "Good.example", True),
    ("127.1.2.3", (), "127.1.2.3", True), ("127.1", (), "evil.example", False),
    ("127.0.0.1", (), "localhost.", True), ("localhost", (), "evil.example", False), ("::1", (), "evil.example", False),
    (EVERYWHERE, (), "evil.example", True), (EVERYWHERE, ("good.example",), "evil.example", False),
    (EVERYWHERE, ("good.example",), "good.example", True), ("server.example", (), "anything.example", True),
])  # fmt: skip
def test_which_names_clients_may_use(host: str, allowed: tuple[str, ...], name: str, expected: bool) -> None:
    assert fd.ServeOptions(host, allowed_hosts=allowed).allows_host(name) is expected


def test_numbers_are_read_while_a_photo_is_decoded(server: fd.Server, monkeypatch: pytest.MonkeyPatch) -> None:
    decoding, going = threading.Event(), threading.Event()

    def wait(*_: object) -> None:
        decoding.set()
        assert going.wait(30)
        raise fd.ImageError("a photo", remedy="")

    monkeypatch.setattr("fcn_deploy.serving.routes.decode_image", wait)
    with ThreadPoolExecutor(1) as pool:
        photo = pool.submit(call, server, "/segment", b"a photo")
        assert decoding.wait(30)
        assert call(server, INFER, json_request(PIXELS))[0] == 200
        going.set()
        assert photo.result(30)[0] == 400


@pytest.mark.parametrize("name", ["", "https://good.example", "good.example:8000", "[::1]", "a b"])
def test_names_that_are_none(name: str) -> None:
    with pytest.raises(fd.UsageError, check=states(repr(name), remedy="--allow-host")):
        fd.ServeOptions(allowed_hosts=("server.example", "::1", name))
