import copy
import ctypes
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
import torch

import fcn_deploy as fd
from fcn_deploy import BundleError, ProviderError, UsageError
from fcn_deploy.choices import Provider
from fcn_deploy.errors import ModuleError
from fcn_deploy.models.weights import random_network
from fcn_deploy.runtime import nvidia, ort
from fcn_deploy.runtime.eager import EagerRunner
from fcn_deploy.runtime.ort import OrtRunner, provider_problem, require_provider
from fcn_deploy.runtime.ort_options import OrtOptions
from tests.messages import missing

SHAPE = (1, 3, 96, 96)
IMAGE = np.random.default_rng(0).normal(0, 60, SHAPE).astype(np.float32)


def eager(dtype: torch.dtype = torch.float32) -> EagerRunner:
    network = random_network(fd.NetworkSpec(fd.Variant.FCN8S, channel_divisor=16), 0)
    return EagerRunner(network.to(dtype), SHAPE)


def test_eager_runs_the_network_itself() -> None:
    runner = eager(torch.float64)

    with runner:
        logits = runner.run({"image": IMAGE.astype(np.float64)})["logits"]

    with torch.inference_mode():
        expected = runner.network(torch.from_numpy(IMAGE).double()).numpy()
    assert np.array_equal(logits, expected)
    assert runner.name == f"PyTorch {torch.__version__} eager float64"


def test_eager_gives_onednn_back_even_after_an_error() -> None:
    runner = eager()
    wide = torch.nn.Conv2d(2048, 1, 1)
    runner.network = torch.nn.Sequential(wide)

    with runner, pytest.raises(ModuleError, match=r"RuntimeError: .*channels"):
        runner.run({"image": IMAGE})

    assert torch.backends.mkldnn.enabled
    assert not wide._forward_hooks
    assert not wide._forward_pre_hooks


def test_a_user_who_turned_onednn_off_finds_it_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)

    with eager() as runner:
        runner.run({"image": IMAGE})

    assert not torch.backends.mkldnn.enabled


def test_long_sums_are_closer_to_float64_than_onednns() -> None:
    """fc6 sums 25,088 products: the reference's own error decides what it can judge."""
    torch.manual_seed(0)
    layer = torch.nn.Conv2d(512, 64, 7)
    image = np.abs(np.random.default_rng(0).normal(0, 100, (1, 512, 12, 12))).astype(np.float32)
    with torch.inference_mode():
        doubled = copy.deepcopy(layer).double()
        exact = doubled(torch.from_numpy(image).double()).numpy()

    with EagerRunner(torch.nn.Sequential(layer), image.shape) as runner:
        logits = runner.run({"image": image})["logits"]

    assert np.linalg.norm(logits - exact) / np.linalg.norm(exact) < 6e-7


@pytest.mark.parametrize("feeds", [
    {}, {"picture": IMAGE}, {"image": IMAGE[:, :, 1:]}, {"image": IMAGE.astype(np.float64)},
    {"image": IMAGE, "extra": IMAGE},
])  # fmt: skip
def test_wrong_feeds_are_refused_by_every_runner(shared_bundle: Path, feeds: dict[str, np.ndarray]) -> None:
    for runner in (eager(), OrtRunner(shared_bundle / "model.onnx")):
        with runner, pytest.raises(UsageError, match="image float32 1x3x96x96"):
            runner.run(feeds)


def test_mapped_weights_give_the_logits_of_a_plain_load(shared_bundle: Path) -> None:
    path = shared_bundle / "model.onnx"

    with OrtRunner(path) as runner:
        mapped = runner.run({"image": IMAGE})["logits"]

    plain = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"]).run(None, {"image": IMAGE})[0]
    assert np.array_equal(mapped, plain)


def test_a_strided_input_is_made_contiguous(shared_bundle: Path) -> None:
    strided = np.asfortranarray(IMAGE)

    with OrtRunner(shared_bundle / "model.onnx") as runner:
        assert np.array_equal(runner.run({"image": strided})["logits"], runner.run({"image": IMAGE})["logits"])


def test_a_runner_has_to_be_opened(shared_bundle: Path) -> None:
    runner = OrtRunner(shared_bundle / "model.onnx")
    with runner:
        pass

    with pytest.raises(RuntimeError, match="not open"):
        runner.run({"image": IMAGE})


def test_a_model_onnxruntime_refuses(tmp_path: Path) -> None:
    import onnx

    text = '<ir_version: 10, opset_import: ["": 18]> g (float[1] x) => (float[1] y) { y = NoSuchOperator (x) }'
    onnx.save(onnx.parser.parse_model(text), tmp_path / "odd.onnx")

    with pytest.raises(BundleError, match=r"ONNX Runtime .*odd\.onnx"), OrtRunner(tmp_path / "odd.onnx"):
        pass


def test_the_cpu_needs_nothing() -> None:
    assert provider_problem(Provider.CPU) is None
    require_provider(Provider.CPU)


CUDA_PROBLEM = provider_problem(Provider.CUDA)


@pytest.mark.skipif(CUDA_PROBLEM is None, reason="CUDA works here")
def test_cuda_without_cuda_is_an_error_and_not_a_run_on_the_cpu(shared_bundle: Path) -> None:
    with pytest.raises(ProviderError) as caught, OrtRunner(shared_bundle / "model.onnx", OrtOptions(Provider.CUDA)):
        pass

    assert caught.value.exit_code == 4
    assert "cuda" in caught.value.problem
    assert "--provider cpu" in caught.value.remedy or "onnxruntime-gpu" in caught.value.remedy


def test_onnxruntime_itself_would_have_fallen_back(shared_bundle: Path) -> None:
    """The reason for the check: asked for CUDA alone, ONNX Runtime runs on the CPU with a warning at most."""
    if CUDA_PROBLEM is None or "CUDAExecutionProvider" not in onnxruntime.get_available_providers():
        pytest.skip("needs a build with CUDA on a machine without")
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4

    session = onnxruntime.InferenceSession(shared_bundle / "model.onnx", options, providers=["CUDAExecutionProvider"])

    assert session.get_providers() == ["CPUExecutionProvider"]


@pytest.mark.skipif(CUDA_PROBLEM is None, reason="CUDA works here")
def test_a_fall_back_is_found_even_when_nothing_forbade_it(
    shared_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ort, "require_provider", lambda _: None)
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.record_ep_graph_assignment_info", "1")
    monkeypatch.setattr(ort, "_session_options", lambda _: options)

    with (
        pytest.raises(ProviderError, match=r"cuda.* CPUExecutionProvider"),
        OrtRunner(shared_bundle / "model.onnx", OrtOptions(Provider.CUDA)),
    ):
        pass


def test_a_build_without_the_provider(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: ["CPUExecutionProvider"])

    with pytest.raises(ProviderError) as caught:
        require_provider(Provider.CUDA)

    assert missing("cuda CPUExecutionProvider", caught.value.problem) == []
    assert "pip install onnxruntime-gpu" in caught.value.remedy


def test_a_library_that_cannot_be_loaded_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def hidden(name: str, **_: object) -> None:
        raise OSError(f"{Path(name).name}: libcudnn.so.9: cannot open shared object file")

    monkeypatch.setattr(nvidia, "driver_cuda_version", lambda: (99, 0))
    monkeypatch.setattr(ctypes, "CDLL", hidden)
    if not (Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_cuda.so").exists():
        pytest.skip("needs a build with CUDA")

    assert "libcudnn.so.9" in str(provider_problem(Provider.CUDA))


@pytest.mark.gpu
@pytest.mark.skipif(CUDA_PROBLEM is not None, reason=f"no CUDA: {CUDA_PROBLEM}")
def test_cuda_agrees_with_the_cpu(shared_bundle: Path) -> None:
    outputs = []
    for provider in (Provider.CPU, Provider.CUDA):
        with ort.OrtRunner(shared_bundle / "model.onnx", OrtOptions(provider)) as runner:
            outputs.append(runner.run({"image": IMAGE})["logits"])

    cpu, cuda = outputs
    assert np.abs(cpu - cuda).max() / np.ptp(cpu) < 1e-5
