"""`fcn-deploy package` as a user meets it."""

import json
import sys
from pathlib import Path

import pytest

from tests.conftest import Call, Run


def test_a_package_from_a_bundle(run_cli: Run, shared_bundle: Path, tmp_path: Path) -> None:
    done = run_cli("package", shared_bundle, "--target", "triton", "--backend", "python", "--output", "out")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [
        "out",
        "├── client.py",
        "├── inference-service.yaml",
        "└── repository",
        "    └── bundle",
        "        ├── 1",
        "        │   ├── artifact",
        "        │   │   ├── manifest.json",
        "        │   │   └── model.onnx  2.8 MB",
        "        │   └── model.py",
        "        └── config.pbtxt",
        "FCN-8s (floor geometry, 21 classes, channels / 16), untrained (random weights, seed 0)",
        "input: pixels uint8 -1x-1x3; output: labels uint8 -1x-1; -1 is any size",
        "server: tritonserver --model-repository out/repository",
        f"container: docker run --rm -p 8000:8000 -p 8001:8001 -v {tmp_path}/out/repository:/models:ro "
        "nvcr.io/nvidia/tritonserver:25.08-py3 sh -c "
        '"pip install fcn-deploy && tritonserver --model-repository /models"',
        "client: python out/client.py photo.jpg",
        "for Kubernetes, set the repository's address in inference-service.yaml, or pass --storage-uri",
    ]
    assert "read the configurations back and compare them with the models" in done.stderr
    assert done.stderr.endswith("untrained weights: the labels mean nothing\n")


def test_json(call_cli: Call, shared_bundle: Path) -> None:
    code, output, errors = call_cli("package", shared_bundle, "--output", "out", "--name", "net", "--json")

    assert code == 0, errors
    made = json.loads(output)
    assert made["name"] == "net"
    assert made["input"] == {"name": "pixels", "shape": [96, 96, 3], "dtype": "uint8"}
    assert "repository/net/config.pbtxt" in made["files"]


@pytest.mark.parametrize(("arguments", "code", "message"), [
    (("nothing",), 3, "nothing is neither a bundle nor an ONNX file"),
    (("nothing.plan", "--backend", "tensorrt"), 3, "nothing.plan is not a file"),
    (("nothing", "--target", "tritn"), 2, "'tritn' is not one of 'triton'"),
    (("nothing", "--backend", "onnx"), 2, "'onnx' is not one of"),
    (("nothing", "--instances", "0"), 2, "instances 0 is not between 1 and 64"),
    (("nothing", "--queue-delay", "x"), 2, "unable to parse string as an integer"),
    (("nothing", "--name", "a b"), 2, "'a b' is no name for a model"),
    (("nothing", "--workspace", "64"), 2, "are for ONNX Runtime's TensorRT provider in Triton"),
])  # fmt: skip
def test_bad_input_has_its_exit_code_and_leaves_nothing(
    call_cli: Call, tmp_path: Path, arguments: tuple[str, ...], code: int, message: str
) -> None:
    found, output, errors = call_cli("package", *arguments)

    assert found == code, errors
    assert message in " ".join(errors.replace("│", " ").split())
    assert output == ""
    assert list(tmp_path.iterdir()) == []


def test_without_tritonclient(
    call_cli: Call, shared_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)

    code, _, errors = call_cli("package", shared_bundle)

    assert code == 2
    assert "a package for Triton needs tritonclient, which is not installed" in errors
    assert "pip install 'fcn-deploy[triton]'" in errors
    assert list(tmp_path.iterdir()) == []
