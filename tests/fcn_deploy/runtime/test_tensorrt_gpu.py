"""Engines on a GPU."""

from pathlib import Path

import numpy as np
import pytest

import fcn_deploy as fd
from exporters.tensorrt.layers import engine_layers
from fcn_deploy.choices import Precision
from fcn_deploy.errors import ProviderError
from fcn_deploy.runtime.nvidia import current_device
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.runtime.tensorrt import TrtRunner, deserialized
from fcn_deploy.runtime.tensorrt_flavour import find_flavour

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(current_device() is None, reason="no NVIDIA GPU"),
]


@pytest.fixture(params=[Precision.FP32, Precision.FP16])
def engine(request: pytest.FixtureRequest, shared_bundle: Path, tmp_path: Path) -> fd.Engine:
    try:
        return fd.build_engine(fd.EngineOptions(shared_bundle, tmp_path / "engine.plan", request.param)).engine
    except ProviderError as error:
        pytest.skip(f"no engine for this GPU: {error.problem}")


@pytest.mark.parametrize("cuda_graph", [False, True])
def test_an_engine_computes_what_onnx_runtime_does(engine: fd.Engine, shared_bundle: Path, cuda_graph: bool) -> None:
    image = np.random.default_rng(0).normal(0, 50, engine.input_shape).astype(np.float32)
    with OrtRunner(shared_bundle / "model.onnx") as reference:
        expected = reference.run({"image": image})["logits"]

    with TrtRunner(engine, cuda_graph=cuda_graph) as runner:
        first = runner.run({"image": image})["logits"]
        again = runner.run({"image": image})["logits"]
        other = runner.run({"image": -image})["logits"]

    bound = 1e-5 if engine.info.precision is Precision.FP32 else 5e-3
    assert np.abs(first - expected).max() <= bound * np.ptp(expected)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_an_engine_is_verified_and_says_what_its_layers_are(engine: fd.Engine) -> None:
    result = fd.verify(engine.path)

    assert sum(result.placement.values()) > 10
    inspected = engine_layers(find_flavour(), deserialized(find_flavour(), engine.path))
    assert inspected in (engine.layers, None)
    assert engine.layers.seen_in == ("builder" if inspected is None else "engine")
