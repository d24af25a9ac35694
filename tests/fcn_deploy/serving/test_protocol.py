"""What clients of the Open Inference Protocol get, and that it is what PyTorch says."""

import json
from pathlib import Path

import numpy as np
import pytest
import tritonclient.grpc
from PIL import Image
from prometheus_client.parser import text_string_to_metric_families

import fcn_deploy as fd
from tests.expected import expected_labels
from tests.fcn_deploy.serving.clients import (
    INFER,
    Pixels,
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


def expected(pixels: Pixels, folder: Path) -> Pixels:
    """PyTorch's labels of n x 96 x 96 x 3 pixels."""
    found = []
    for n, photo in enumerate(pixels):
        Image.fromarray(photo).save(folder / f"{n}.png")
        found.append(expected_labels(folder / f"{n}.png", 96))
    return np.stack(found)


@pytest.mark.parametrize("binary", [True, False], ids=["binary", "JSON"])
def test_labels_over_http_are_pytorchs(server: fd.Server, tmp_path: Path, binary: bool) -> None:
    pixels = noise()
    with http_client(server) as client:
        labels = http_infer(client, pixels, binary=binary)

    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected(pixels, tmp_path))


def test_labels_over_grpc_are_pytorchs(server: fd.Server, tmp_path: Path) -> None:
    pixels = noise(seed=1)
    with grpc_client(server) as client:
        labels = grpc_infer(client, pixels)

    assert labels.dtype == np.uint8
    assert np.array_equal(labels, expected(pixels, tmp_path))


def test_grpc_takes_values_one_by_one(server: fd.Server, tmp_path: Path) -> None:
    pixels = noise(seed=2)
    given = tritonclient.grpc.InferInput("pixels", list(pixels.shape), "UINT8")
    given._get_tensor().contents.uint_contents.extend(pixels.ravel().tolist())
    with grpc_client(server) as client:
        labels = client.infer("net", [given]).as_numpy("labels")

    assert np.array_equal(labels, expected(pixels, tmp_path))


def test_nested_json_and_flat_json_are_the_same_request(server: fd.Server) -> None:
    pixels = noise(seed=3)
    flat = call(server, INFER, json_request(pixels))
    nested = call(server, INFER, json_request(pixels, data=pixels.tolist()))

    assert flat[0] == nested[0] == 200
    assert flat[1]["outputs"] == nested[1]["outputs"]
    assert flat[1]["outputs"][0]["shape"] == [1, 96, 96]


@pytest.mark.parametrize("spaces", ["\n", "\t", "\r\n", " " * 1000], ids=["newline", "tab", "CRLF", "many"])
def test_white_space_between_the_brackets_changes_nothing(server: fd.Server, spaces: str) -> None:
    pixels = noise(seed=3)
    flat = call(server, INFER, json_request(pixels))
    body = json_request(pixels, data=pixels.tolist()).replace(b"[[[[", f"{spaces}[".encode() * 4)
    nested = call(server, INFER, body)

    assert spaces.encode() in body
    assert (nested[0], nested[1].get("outputs")) == (200, flat[1]["outputs"])


def test_nested_json_may_have_a_line_for_each_value(server: fd.Server) -> None:
    pixels = noise(seed=3)
    body = json.dumps(json.loads(json_request(pixels, data=pixels.tolist())), indent=0).encode()

    status, answer, _ = call(server, INFER, body)

    assert (status, answer.get("outputs")) == (200, call(server, INFER, json_request(pixels))[1]["outputs"])


def test_data_of_null_leaves_the_binary_values(server: fd.Server) -> None:
    pixels = noise(seed=3)
    tensor = {"name": "pixels", "shape": list(pixels.shape), "datatype": "UINT8", "data": None}
    head = json.dumps({"inputs": [tensor | {"parameters": {"binary_data_size": pixels.size}}]}).encode()
    lengths = {"Inference-Header-Content-Length": str(len(head))}
    status, answer, _ = call(server, INFER, head + pixels.tobytes(), lengths)

    assert (status, answer.get("outputs")) == (200, call(server, INFER, json_request(pixels))[1]["outputs"])


def test_answers_say_how_long_the_model_ran(server: fd.Server) -> None:
    answer = call(server, INFER, json_request(noise()))[1]

    assert answer["model_name"] == "net"
    assert answer["parameters"]["run_us"] > 0
    assert answer["parameters"]["queue_us"] >= 0


def test_a_requests_id_comes_back(server: fd.Server) -> None:
    pixels = noise()
    given = tritonclient.grpc.InferInput("pixels", list(pixels.shape), "UINT8")
    given.set_data_from_numpy(pixels)
    with grpc_client(server) as client:
        assert client.infer("net", [given], request_id="of mine").get_response().id == "of mine"
    body = json.dumps(json.loads(json_request(pixels)) | {"id": "another"}).encode()
    assert call(server, INFER, body)[1]["id"] == "another"


def test_metadata_is_the_same_over_both_protocols(server: fd.Server) -> None:
    with http_client(server) as over_http, grpc_client(server) as over_grpc:
        for client in (over_http, over_grpc):
            assert client.is_server_live()
            assert client.is_server_ready()
            assert client.is_model_ready("net")
        by_http = over_http.get_model_metadata("net")
        by_grpc = over_grpc.get_model_metadata("net", as_json=True)
        assert over_http.get_server_metadata() == {
            "name": "fcn-deploy", "version": fd.__version__, "extensions": ["binary_tensor_data"],
        }  # fmt: skip
        assert over_grpc.get_server_metadata().name == "fcn-deploy"

    assert by_http["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [1, 96, 96, 3]}]
    assert by_http["outputs"] == [{"name": "labels", "datatype": "UINT8", "shape": [1, 96, 96]}]
    for ends in ("inputs", "outputs"):
        shapes = [[int(n) for n in tensor["shape"]] for tensor in by_grpc[ends]]
        assert shapes == [tensor["shape"] for tensor in by_http[ends]]


def test_a_batch_takes_up_to_its_number_of_photos(tmp_path: Path) -> None:
    options = fd.ExportOptions(
        fd.Variant.FCN8S, tmp_path / "batch", channel_divisor=16,
        onnx=fd.OnnxOptions(96, 96, batch=3), head=fd.Head.LABELS, image_input=fd.ImageInput.UINT8,
        optimize=fd.Optimize.SIMPLIFY, verify=False,
    )  # fmt: skip
    pixels = noise(3)
    truth = expected(pixels, tmp_path)
    with fd.Server(fd.export(options).path, OPTIONS) as server, http_client(server) as client:
        assert client.get_model_metadata("net")["inputs"][0]["shape"] == [-1, 96, 96, 3]
        for count in (1, 2, 3):
            assert np.array_equal(http_infer(client, pixels[:count]), truth[:count])
        status, answer, _ = call(server, INFER, *binary_request(noise(4)))

    assert status == 400
    assert "shape [4, 96, 96, 3] of pixels: expected [1..3, 96, 96, 3]" in answer["error"]


def test_the_model_has_the_bundles_name_by_default(shared_bundle: Path) -> None:
    with fd.Server(shared_bundle, fd.ServeOptions(http_port=0, grpc_port=0)) as server:
        assert server.listening.name == shared_bundle.name
        assert call(server, "/v2/models")[1] == {"models": [shared_bundle.name]}
        assert server.listening.untrained


def test_a_broken_artifact_is_said_on_entering(bundle: Path) -> None:
    (bundle / "model.onnx").write_bytes(b"nothing")

    with (
        pytest.raises(fd.BundleError, match=r"has 7 bytes; manifest\.json says"),
        fd.Server(bundle, OPTIONS),
    ):
        pass


def test_metrics_are_prometheus_and_count_right(shared_bundle: Path) -> None:
    def counted() -> dict[tuple[str, ...], float]:
        families = text_string_to_metric_families(exposed(server))
        return {
            (sample.name, *sample.labels.values()): sample.value for family in families for sample in family.samples
        }

    with (
        fd.Server(shared_bundle, OPTIONS) as server,
        http_client(server) as over_http,
        grpc_client(server) as over_grpc,
    ):
        assert {counted()["fcn_deploy_requests_total", "ok", name] for name in ("http", "grpc", "page")} == {0}
        for _ in range(3):
            http_infer(over_http, noise())
        grpc_infer(over_grpc, noise())
        call(server, "/segment", fd.SAMPLE_SCENE.read_bytes())
        call(server, INFER, b"{}")
        call(server, "/v2/health/ready")
        found = counted()

    for (outcome, protocol), count in {
        ("ok", "http"): 3, ("ok", "grpc"): 1, ("ok", "page"): 1, ("invalid", "http"): 1, ("invalid", "grpc"): 0,
    }.items():  # fmt: skip
        assert found["fcn_deploy_requests_total", outcome, protocol] == count
    assert found["fcn_deploy_photos_total",] == found["fcn_deploy_run_seconds_count",] == 5
    assert found["fcn_deploy_request_seconds_count", "http"] == 4
    assert 0 < found["fcn_deploy_run_seconds_sum",] < 60
    assert found["fcn_deploy_in_flight",] == found["fcn_deploy_waiting",] == found["fcn_deploy_body_bytes",] == 0
    assert found["process_resident_memory_bytes",] > 5e7
    assert [key for key in found if key[0] == "fcn_deploy_model_info" and "net" in key and "true" in key]
