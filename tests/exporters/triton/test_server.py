"""Packages in a real Triton server: labels through HTTP and gRPC are PyTorch's, and bad requests do it no harm."""

import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tritonclient.grpc
import tritonclient.http
from google.protobuf import text_format
from PIL import Image
from tritonclient.grpc.model_config_pb2 import ModelConfig
from tritonclient.utils import InferenceServerException, np_to_triton_dtype

import fcn_deploy as fd
from tests.conftest import Once
from tests.expected import expected_labels
from tests.exporters.triton.conftest import SIZE, Bundles, pictures
from tests.exporters.triton.engines import engine_for_triton
from tests.exporters.triton.server import Server
from tests.processes import wait_until

FLOAT, UINT8 = fd.ImageInput.FLOAT, fd.ImageInput.UINT8
LOGITS, LABELS = fd.Head.LOGITS, fd.Head.LABELS
STAND_IN = Path(__file__).parent / "stand_in.py"
PROTOCOLS = (tritonclient.http, tritonclient.grpc)
# One second: long enough for requests sent together to be in the queue together.
TOGETHER_US = 1_000_000


# Where each package would run, were its backend in the server at hand.
ELSEWHERE = {
    "graph-cpu": {},
    "graph-cuda": {"provider": fd.Provider.CUDA, "instances": 2},
    "graph-tensorrt": {"provider": fd.Provider.TENSORRT, "workspace_mb": 512, "engine_cache": "/cache"},
}


def run_in_python(repository: Path, model_file: Path | None = None) -> Path:
    """Let models of backends that the server does not have run through the Python backend instead.

    Args:
        repository: what is changed.
        model_file: the ONNX file that engines were built from, and that runs in their place.
    """
    for path in repository.glob("*/config.pbtxt"):
        config = text_format.Parse(path.read_text(), ModelConfig())
        if config.platform == "ensemble":
            continue
        if config.backend == "tensorrt" and model_file is not None:
            shutil.copy(model_file, path.parent / "1" / "model.onnx")
        config.backend, config.platform = "python", ""
        config.instance_group[0].kind = config.instance_group[0].KIND_CPU
        config.optimization.Clear()
        path.write_text(text_format.MessageToString(config))
        shutil.copy(STAND_IN, path.parent / "1" / "model.py")
    return repository


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory, once: Once, bundles: Bundles) -> dict[str, Path]:
    """Packages of every backend, by the name of their model."""
    folder = tmp_path_factory.mktemp("packages")
    python, onnxruntime = fd.TritonBackend.PYTHON, fd.TritonBackend.ONNXRUNTIME
    wanted: dict[str, dict[str, Any]] = {
        "photo": {"source": bundles(FLOAT, LOGITS, 1), "backend": python},
        "photos": {"source": bundles(UINT8, LABELS, 4), "backend": python, "queue_delay_us": TOGETHER_US},
        "graph": {"source": bundles(FLOAT, LOGITS, 1), "backend": onnxruntime},
        "graphs": {"source": bundles(FLOAT, LOGITS, 4), "backend": onnxruntime, "queue_delay_us": TOGETHER_US},
        **{name: {"source": bundles(FLOAT, LOGITS, 4), **options} for name, options in ELSEWHERE.items()},
    }
    source = bundles(FLOAT, LOGITS, 1)
    plan = once("triton-engine", lambda folder: engine_for_triton(source, folder / "fcn8s.plan")) / "fcn8s.plan"
    for name in ("engine-around", "engine-elsewhere"):
        wanted[name] = {"source": plan, "backend": fd.TritonBackend.TENSORRT}
    for name, options in wanted.items():
        fd.package(fd.PackageOptions(output=folder / name, name=name, **options))
    return {name: folder / name for name in wanted}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory, packages: dict[str, Path], bundles: Bundles) -> Iterator[Server]:
    model = bundles(FLOAT, LOGITS, 1) / "model.onnx"
    repositories = {name: path / "repository" for name, path in packages.items()}
    for name in ("graph", "graphs", "engine-around"):
        run_in_python(repositories[name], model)
    # Models that cannot be loaded there are part of the tests.
    lenient = ("--exit-on-error=false", "--strict-readiness=false")
    with Server(tmp_path_factory.mktemp("server"), list(repositories.values()), *lenient) as running:
        yield running


@pytest.fixture(params=PROTOCOLS, ids=["http", "grpc"])
def protocol(request: pytest.FixtureRequest) -> Any:
    return request.param


def ask(protocol: Any, server: Server, model: str, pixels: np.ndarray, name: str = "pixels") -> np.ndarray:
    url = server.grpc if protocol is tritonclient.grpc else server.http
    with protocol.InferenceServerClient(url) as client:
        tensor = protocol.InferInput(name, list(pixels.shape), np_to_triton_dtype(pixels.dtype.type))
        tensor.set_data_from_numpy(pixels)
        labels = client.infer(model, [tensor]).as_numpy("labels")
    assert labels.dtype == np.uint8
    return np.asarray(labels)


@pytest.mark.parametrize("size", [(SIZE, SIZE), (60, 80), (1, 1), (500, 333)])
def test_photos_of_any_size_get_pytorchs_labels(server: Server, protocol: Any, size: tuple[int, int]) -> None:
    (photo,) = pictures(1, *size)

    assert np.array_equal(ask(protocol, server, "photo", photo), expected_labels(photo, SIZE))


@pytest.mark.parametrize(("model", "size"), [("photos", (70, 50)), ("graphs", (SIZE, SIZE))])
def test_a_request_of_several_photos(server: Server, protocol: Any, model: str, size: tuple[int, int]) -> None:
    photos = pictures(4, *size)

    labels = ask(protocol, server, model, photos)

    assert np.array_equal(labels, [expected_labels(photo, SIZE) for photo in photos])


@pytest.mark.parametrize("model", ["photos", "graphs"])
def test_a_batch_that_stays_unfilled(server: Server, model: str) -> None:
    photos = pictures(3)

    labels = ask(tritonclient.http, server, model, photos)

    assert np.array_equal(labels, [expected_labels(photo, SIZE) for photo in photos])


@pytest.mark.parametrize("model", ["graph", "engine-around"])
def test_one_photo_of_the_networks_size_without_its_batch(server: Server, protocol: Any, model: str) -> None:
    """Triton adds and removes the batch of one, in each step of an ensemble too."""
    (photo,) = pictures(1)

    assert np.array_equal(ask(protocol, server, model, photo), expected_labels(photo, SIZE))


def states(server: Server) -> dict[str, tuple[str, str]]:
    """State of every model, and the reason for it."""
    with tritonclient.http.InferenceServerClient(server.http) as client:
        index = client.get_model_repository_index()
    return {model["name"]: (model.get("state", "refused"), model.get("reason", "")) for model in index}


def test_every_configuration_is_one_that_triton_loads(server: Server) -> None:
    """Of models that it has no backend for it got as far as looking for that; what it refuses has no state at all."""
    found = states(server)
    missing = "Invalid argument: unable to find backend library for backend '{}', " + (
        "try specifying runtime on the model configuration."
    )
    graphs = [*ELSEWHERE, "engine-elsewhere_pixels", "engine-elsewhere_labels"]
    unavailable = {name: ("UNAVAILABLE", missing.format("onnxruntime")) for name in graphs}

    assert found.pop("engine-elsewhere") == ("refused", "")
    assert "ensemble 'engine-elsewhere' depends on 'engine-elsewhere_" in server.log.read_text()
    assert found == {
        **dict.fromkeys(("photo", "photos", "graph", "graphs", "engine-around"), ("READY", "")),
        **dict.fromkeys((f"engine-around_{step}" for step in ("pixels", "engine", "labels")), ("READY", "")),
        **unavailable,
        "engine-elsewhere_engine": ("UNAVAILABLE", missing.format("tensorrt")),
    }


def executions(server: Server, model: str) -> tuple[int, int]:
    """Photos answered, and runs of the model that answered them."""
    with tritonclient.http.InferenceServerClient(server.http) as client:
        (found,) = client.get_inference_statistics(model)["model_stats"]
    return int(found["inference_count"]), int(found["execution_count"])


@pytest.mark.parametrize(("model", "sizes"), [
    ("photos", [(60, 80), (SIZE, SIZE), (33, 100), (60, 80)]), ("graphs", [(SIZE, SIZE)] * 4),
])  # fmt: skip
def test_requests_that_come_together_share_a_run(
    server: Server, protocol: Any, model: str, sizes: list[tuple[int, int]]
) -> None:
    """Even of different sizes, where the Python backend fits them into the network itself."""
    photos = [pictures(4, *size)[i] for i, size in enumerate(sizes)]
    before = executions(server, model)

    with ThreadPoolExecutor(4) as pool:
        labels = list(pool.map(lambda photo: ask(protocol, server, model, photo[None]), photos))

    # Triton counts a run after it has answered.
    wait_until(lambda: executions(server, model)[0] == before[0] + 4)
    assert executions(server, model)[1] == before[1] + 1
    for found, photo in zip(labels, photos, strict=True):
        assert np.array_equal(found[0], expected_labels(photo, SIZE))


@pytest.mark.parametrize(("model", "pixels", "name", "message"), [
    ("photo", np.zeros((8, 8, 3), np.float32), "pixels", "data-type is 'FP32'"),
    ("photo", np.zeros((8, 8, 4), np.uint8), "pixels", "unexpected shape for input 'pixels'"),
    ("photo", np.zeros((2, 8, 8, 3), np.uint8), "pixels", "unexpected shape for input 'pixels'"),
    ("photo", np.zeros((8, 8, 3), np.uint8), "picture", "unexpected inference input 'picture'"),
    ("photo", np.zeros((0, 8, 3), np.uint8), "pixels", "a photo of 0x8 pixels: 1 to 178000000 are labelled"),
    ("photos", np.zeros((5, 8, 8, 3), np.uint8), "pixels", "must be <= 4"),
    ("graph", np.zeros((95, 96, 3), np.uint8), "pixels", "unexpected shape for input 'pixels'"),
    ("nobody", np.zeros((8, 8, 3), np.uint8), "pixels", "unknown model: 'nobody' is not found"),
])  # fmt: skip
def test_bad_requests_are_answered_and_the_server_lives_on(  # noqa: PLR0917 - two fixtures and a table of four
    server: Server, protocol: Any, model: str, pixels: np.ndarray, name: str, message: str
) -> None:
    with pytest.raises(InferenceServerException, match=re.escape(message)):
        ask(protocol, server, model, pixels, name)

    assert server.alive
    (photo,) = pictures(1, 20, 30)
    assert np.array_equal(ask(protocol, server, "photo", photo), expected_labels(photo, SIZE))


def test_a_bad_photo_among_good_ones_is_refused_alone(server: Server) -> None:
    """Requests of one run answer for themselves."""
    good = pictures(3, 40, 40)
    empty = np.zeros((1, 0, 40, 3), np.uint8)

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, tritonclient.http, server, "photos", photo[None]) for photo in good]
        refused = pool.submit(ask, tritonclient.http, server, "photos", empty)

    assert "a photo of 0x40 pixels" in str(refused.exception(timeout=60))
    for answer, photo in zip(answers, good, strict=True):
        assert np.array_equal(answer.result(timeout=60)[0], expected_labels(photo, SIZE))


@pytest.mark.parametrize(("model", "grpc"), [
    ("photo", False), ("photo", True), ("graphs", True), ("engine-around", False),
])  # fmt: skip
def test_the_clients_example_writes_the_labels(
    server: Server, packages: dict[str, Path], model: str, grpc: bool, tmp_path: Path
) -> None:
    (photo,) = pictures(1, 60, 80)
    Image.fromarray(photo).save(tmp_path / "photo.png")
    where = ["--grpc", "--url", server.grpc] if grpc else ["--url", server.http]

    done = subprocess.run(
        [sys.executable, str(packages[model] / "client.py"), "photo.png", *where],
        cwd=tmp_path, capture_output=True, text=True, check=False, timeout=60,
    )  # fmt: skip

    assert done.stderr == ""
    assert done.stdout == "photo.png -> photo.labels.png\n"
    with Image.open(tmp_path / "photo.labels.png") as labels:
        assert np.array_equal(np.asarray(labels), expected_labels(photo, SIZE))
        assert labels.getpalette()[3:6] == [128, 0, 0]  # type: ignore[index]


def test_the_clients_example_says_what_went_wrong(server: Server, packages: dict[str, Path], tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("no photo")
    client = [sys.executable, str(packages["photo"] / "client.py")]

    command = [*client, str(tmp_path / "notes.txt")]
    broken = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert broken.returncode == 1
    assert "cannot identify image file" in broken.stderr
    assert "Traceback" not in broken.stderr


def test_what_the_server_knows_of_a_model(server: Server) -> None:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        metadata = client.get_model_metadata("photos")
        parameters = client.get_model_config("photos")["parameters"]

    assert metadata["versions"] == ["1"]
    assert metadata["inputs"] == [{"name": "pixels", "datatype": "UINT8", "shape": [-1, -1, -1, 3]}]
    assert metadata["outputs"] == [{"name": "labels", "datatype": "UINT8", "shape": [-1, -1, -1]}]
    assert parameters["fcn_deploy.weights"]["string_value"] == "untrained"
    assert len(parameters["fcn_deploy.model_sha256"]["string_value"]) == 64


def test_nothing_went_wrong_unseen(server: Server) -> None:
    """Whatever a model's own process stumbles over is in the server's log."""
    assert "Traceback" not in server.log.read_text()
