import builtins
import platform
from importlib.metadata import version
from importlib.util import find_spec

import pytest

import fcn_deploy as fd
from fcn_deploy import doctor
from fcn_deploy.installation import Wheel
from fcn_deploy.runtime import nvidia, ort
from tests.engines import rtx


def findings() -> dict[str, fd.Finding]:
    return {finding.name: finding for finding in fd.examine()}


def test_versions_are_the_installed_ones() -> None:
    found = findings()

    assert found["python"].value.startswith(platform.python_version())
    for name in ("torch", "onnx", "onnxsim", "numpy"):
        assert found[name].value == version(name)


def test_every_provider_is_tried() -> None:
    found = findings()

    assert found["provider cpu"].status == "ok"
    assert "CPUExecutionProvider" in found["providers built in"].value
    cuda = found["provider cuda"]
    assert (cuda.status == "ok") == (ort.provider_problem(fd.Provider.CUDA) is None)
    assert (cuda.remedy == "") == (cuda.status == "ok")


def test_both_kinds_of_tensorrt_are_looked_for() -> None:
    flavour, found = rtx(), findings()

    assert (found["tensorrt-rtx"].status, found["tensorrt-rtx"].value) == ("ok", flavour.version)
    if find_spec("tensorrt") is None:
        assert found["tensorrt"].status == "note"
        assert found["tensorrt"].value == "flavour tensorrt needs tensorrt, which is not installed"
        assert found["tensorrt"].remedy.endswith("pip install 'fcn-deploy[tensorrt]'")


def test_two_wheels_are_a_problem_that_names_both(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = Wheel("onnxruntime", "1.31.0", "/a"), Wheel("onnxruntime-gpu", "1.30.0", "/a")
    monkeypatch.setattr(nvidia, "onnxruntime_wheels", lambda: wheels)

    found = findings()["onnxruntime wheels"]

    assert found.status == "problem"
    assert found.value == "onnxruntime 1.31.0 and onnxruntime-gpu 1.30.0 overwrite each other"
    assert "pip uninstall" in found.remedy


def test_a_hidden_wheel_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    wheels = Wheel("onnxruntime-gpu", "1.31.0", "/b"), Wheel("onnxruntime", "1.30.0", "/a")
    for module in (nvidia, doctor):
        monkeypatch.setattr(module, "onnxruntime_wheels", lambda: wheels)

    found = findings()["onnxruntime wheels"]

    assert found.status == "note"
    assert found.value == "onnxruntime-gpu 1.31.0 is found first and hides onnxruntime 1.30.0"


def test_no_onnxruntime_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *rest: object, **named: object) -> object:
        if name == "fcn_deploy.runtime":
            raise ImportError("No module named 'onnxruntime'")
        return real(name, *rest, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(builtins, "__import__", without)

    assert findings()["onnxruntime"].status == "problem"


def test_memory_and_disk_are_measured_against_a_full_export(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "NEEDED_MEMORY_BYTES", 1)
    assert findings()["free memory"].status == "ok"

    monkeypatch.setattr(doctor, "NEEDED_MEMORY_BYTES", 10**15)
    monkeypatch.setattr(doctor, "NEEDED_DISK_BYTES", 10**18)
    found = findings()
    assert "a full-size export takes 1000000.0 GB" in found["free memory"].value
    assert found["free disk here"].status == "note"
    assert found["free disk here"].remedy
