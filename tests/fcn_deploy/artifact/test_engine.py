"""Plans and their sidecars, whole and damaged."""

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

import fcn_deploy as fd
from fcn_deploy.artifact.engine import Device, Engine, open_engine, sidecar_path
from fcn_deploy.choices import FlavourName, Provider
from fcn_deploy.runtime.tensorrt import TrtRunner, check_device, check_version, deserialized
from tests.conftest import Once
from tests.engines import WITHOUT_GPU, built, rtx
from tests.messages import missing, states

ADA = Device("NVIDIA GeForce RTX 4090", "8.9", "13.0")
HOPPER = Device("NVIDIA H200", "9.0", "13.0")


@pytest.fixture(scope="module")
def made(shared_bundle: Path, once: Once) -> Engine:
    return open_engine(once("engine", lambda folder: built(shared_bundle, folder / "engine.plan")) / "engine.plan")


@pytest.fixture
def engine(made: Engine, tmp_path: Path) -> Engine:
    """A copy that a test may damage."""
    for path in (made.path, sidecar_path(made.path)):
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return open_engine(tmp_path / made.path.name)


def edit(engine: Engine, change: Callable[[dict[str, Any]], None]) -> None:
    path = sidecar_path(engine.path)
    facts = json.loads(path.read_text(encoding="utf-8"))
    change(facts)
    path.write_text(json.dumps(facts), encoding="utf-8")


def test_a_truncated_plan(engine: Engine) -> None:
    engine.path.write_bytes(engine.path.read_bytes()[:1000])

    with pytest.raises(fd.BundleError) as caught:
        open_engine(engine.path)

    assert missing(f"{engine.path} 1000 bytes engine.plan.json {engine.plan_bytes}", caught.value.problem) == []
    assert caught.value.exit_code == 3


def test_a_plan_of_the_same_size(engine: Engine) -> None:
    data = bytearray(engine.path.read_bytes())
    data[-1] ^= 1
    engine.path.write_bytes(data)

    with pytest.raises(fd.BundleError, check=states("engine.plan engine.plan.json SHA-256")):
        open_engine(engine.path)


def test_missing_files(engine: Engine, tmp_path: Path) -> None:
    sidecar_path(engine.path).unlink()

    with pytest.raises(fd.BundleError, check=states("engine.plan no engine.plan.json", remedy="engine.plan.json")):
        open_engine(engine.path)

    with pytest.raises(fd.BundleError, check=states("none.plan file")):
        open_engine(tmp_path / "none.plan")


@pytest.mark.parametrize(("change", "facts"), [
    (lambda f: f.pop("key"), "damaged `key`"),
    (lambda f: f.update(flavour="tensorrt-lite"), "damaged 'tensorrt-lite' `$.flavour`"),
    (lambda f: f.update(input_shape=[1, 3]), "damaged 4 2 `$.input_shape`"),
    (lambda f: f.update(input_shape=[0, 3, 96, 96]), "damaged 1 `$.input_shape[0]`"),
    (lambda f: f["outputs"][0].update(dtype="float33"), "damaged logits 'float33' float32"),
    (lambda f: f["inputs"].clear(), "damaged 1 `$.inputs`"),
    (lambda f: f["inputs"][0].update(shape="wide"), "damaged `$.inputs[0].shape`"),
    (lambda f: f.update(schema_version=2), "schema version 2 1"),
])  # fmt: skip
def test_a_damaged_sidecar(engine: Engine, change: Callable[[dict[str, Any]], None], facts: str) -> None:
    edit(engine, change)

    with pytest.raises(fd.BundleError) as caught:
        open_engine(engine.path)

    assert missing(f"engine.plan.json {facts}", caught.value.problem) == []


def test_a_sidecar_that_is_no_json(engine: Engine) -> None:
    sidecar_path(engine.path).write_text("[1,", encoding="utf-8")

    with pytest.raises(fd.BundleError, check=states("engine.plan.json damaged")):
        open_engine(engine.path)


def test_another_version_of_tensorrt(engine: Engine) -> None:
    edit(engine, lambda facts: facts.update(version="1.6.0.1"))

    with pytest.raises(fd.BundleError) as caught:
        TrtRunner(open_engine(engine.path))

    assert missing(f"{engine.path} tensorrt-rtx 1.6.0.1 {rtx().version}", caught.value.problem) == []
    assert caught.value.remedy


def test_another_flavour_is_asked_for_by_name(engine: Engine) -> None:
    pytest.importorskip("tensorrt_rtx")
    from importlib.util import find_spec

    if find_spec("tensorrt") is not None:
        pytest.skip("TensorRT is installed too")
    edit(engine, lambda facts: facts.update(flavour="tensorrt", version="11.4.0.106"))

    with pytest.raises(fd.ProviderError) as caught:
        TrtRunner(open_engine(engine.path))

    assert missing("tensorrt", caught.value.problem) == []
    assert missing("'fcn-deploy[tensorrt]'", caught.value.remedy) == []


def test_another_device(engine: Engine) -> None:
    check_version(engine, rtx())
    check_device(engine, ADA)

    with pytest.raises(fd.BundleError) as caught:
        check_device(engine, HOPPER)
    assert missing(f"{engine.path} 8.9 12.0 H200 9.0", caught.value.problem) == []

    here = replace(engine, flavour=FlavourName.TENSORRT, capabilities=(), device=HOPPER)
    check_device(here, HOPPER)
    with pytest.raises(fd.BundleError) as caught:
        check_device(here, ADA)
    assert missing(f"{engine.path} H200 9.0 4090 8.9", caught.value.problem) == []


def test_a_device_survives_the_sidecar(engine: Engine) -> None:
    edit(engine, lambda facts: facts.update(capabilities=[], device=vars(HOPPER)))

    assert open_engine(engine.path).device == HOPPER
    assert open_engine(engine.path).built_for == "NVIDIA H200 (compute capability 9.0)"


@WITHOUT_GPU
def test_running_needs_a_gpu(engine: Engine) -> None:
    for action in (lambda: TrtRunner(open_engine(engine.path)).__enter__(), lambda: fd.verify(engine.path)):
        with pytest.raises(fd.ProviderError) as caught:
            action()
        assert missing("NVIDIA libcuda.so.1", caught.value.problem) == []

    with pytest.raises(fd.BundleError, match=r"TensorRT-RTX .*engine\.plan.*CUDA driver"):
        deserialized(rtx(), engine.path)


def test_a_provider_is_not_for_engines(engine: Engine) -> None:
    with pytest.raises(fd.UsageError, check=states("provider cuda engine.plan engine TensorRT")):
        fd.verify(engine.path, fd.VerifyOptions(provider=Provider.CUDA))


def test_fused_layers_are_not_compared_one_by_one(engine: Engine) -> None:
    with pytest.raises(fd.UsageError, check=states("engine.plan layers fused", remedy="--layers")):
        fd.verify(engine.path, fd.VerifyOptions(layers=True))


def test_a_closed_runner_does_not_run(engine: Engine) -> None:
    runner = TrtRunner(open_engine(engine.path))

    assert runner.name == f"TensorRT-RTX {engine.version} fp32"
    assert [str(spec) for spec in runner.inputs] == ["image float32 1x3x96x96"]
    with pytest.raises(RuntimeError, match="not open"):
        runner.bind()


def test_a_name_with_bytes_that_are_no_utf_8(engine: Engine) -> None:
    renamed = engine.path.with_name(os.fsdecode(b"n-\xff.plan"))
    facts = replace(engine, path=renamed)
    engine.path.rename(renamed)
    sidecar_path(renamed).write_text(facts.sidecar(), encoding="utf-8")

    assert open_engine(renamed) == facts


@pytest.mark.parametrize("field", ["flavour", "version", "key", "plan_sha256"])
def test_a_damaged_field_of_bytes_that_are_no_utf_8(engine: Engine, field: str) -> None:
    edit(engine, lambda facts: facts.update({field: os.fsdecode(b"\xff"), "plan_bytes": -1}))

    with pytest.raises(fd.BundleError, match=r"engine\.plan"):
        open_engine(engine.path)
