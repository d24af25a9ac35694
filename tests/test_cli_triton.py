"""`fcn-deploy package` as a user meets it."""

import json
import sys
from pathlib import Path

import pytest

from fcn_deploy import __version__
from tests.conftest import Call, Run
from tests.messages import missing


def test_a_package_from_a_bundle(run_cli: Run, shared_bundle: Path, tmp_path: Path) -> None:
    done = run_cli("package", shared_bundle, "--target", "triton", "--backend", "python", "--output", "out")

    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[:11] == [
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
    ]
    for line, fact in zip(lines[11:], (
        "untrained", "pixels uint8 -1x-1x3", "tritonserver --model-repository out/repository",
        f"docker run --rm -p 8000:8000 -p 8001:8001 -v {tmp_path}/out/repository:/models:ro "
        "nvcr.io/nvidia/tritonserver:25.08-py3 sh -c "
        f'"pip install fcn-deploy=={__version__} && tritonserver --model-repository /models"',
        "python out/client.py photo.jpg", "--storage-uri",
    ), strict=True):  # fmt: skip
        assert fact in line
    assert "untrained" in done.stderr.splitlines()[-1]


def test_json(call_cli: Call, shared_bundle: Path) -> None:
    code, output, errors = call_cli("package", shared_bundle, "--output", "out", "--name", "net", "--json")

    assert code == 0, errors
    made = json.loads(output)
    assert made["name"] == "net"
    assert made["input"] == {"name": "pixels", "shape": [96, 96, 3], "dtype": "uint8"}
    assert "repository/net/config.pbtxt" in made["files"]


@pytest.mark.parametrize(("arguments", "code", "facts"), [
    (("nothing",), 3, "nothing neither bundle ONNX"),
    (("nothing.plan", "--backend", "tensorrt"), 3, "nothing.plan not file tensorrt"),
    (("nothing", "--target", "tritn"), 2, "--target 'tritn' 'triton'"),
    (("nothing", "--backend", "onnx"), 2, "onnx python"),
    (("nothing", "--instances", "0"), 2, "instances 0 1 64"),
    (("nothing", "--queue-delay", "x"), 2, "Invalid '--queue-delay' integer"),
    (("nothing", "--name", "a b"), 2, "'a b' not valid name model --name"),
    (("nothing", "--workspace", "64"), 2, "--workspace TensorRT"),
])  # fmt: skip
def test_bad_input_has_its_exit_code_and_leaves_nothing(
    call_cli: Call, tmp_path: Path, arguments: tuple[str, ...], code: int, facts: str
) -> None:
    found, output, errors = call_cli("package", *arguments)

    assert found == code, errors
    assert missing(facts, errors) == []
    assert output == ""
    assert list(tmp_path.iterdir()) == []


def test_without_tritonclient(
    call_cli: Call, shared_bundle: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tritonclient", None)

    code, _, errors = call_cli("package", shared_bundle)

    assert code == 2
    assert missing("tritonclient 'fcn-deploy[triton]'", errors) == []
    assert list(tmp_path.iterdir()) == []
