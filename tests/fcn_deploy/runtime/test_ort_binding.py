"""Bound inputs and outputs, node placement, threads: on a CPU here, the same on a GPU where there is one."""

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnxruntime
import pytest

from fcn_deploy import OrtOptions, Provider, ProviderError
from fcn_deploy.runtime import nvidia
from fcn_deploy.runtime.ort import OrtRunner, provider_problem, require_placement

SHAPE = (1, 3, 96, 96)
IMAGES = np.random.default_rng(0).normal(0, 60, (2, *SHAPE)).astype(np.float32)
CUDA_PROBLEM = provider_problem(Provider.CUDA)
gpu = pytest.mark.gpu
needs_cuda = pytest.mark.skipif(CUDA_PROBLEM is not None, reason=f"no CUDA: {CUDA_PROBLEM}")


def plain(bundle: Path, image: np.ndarray) -> np.ndarray:
    session = onnxruntime.InferenceSession(bundle / "model.onnx", providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"image": image})[0])


def test_bound_runs_give_the_logits_of_plain_ones(shared_bundle: Path) -> None:
    with OrtRunner(shared_bundle / "model.onnx") as runner:
        bound = runner.bind()
        for image in IMAGES:
            bound.upload({"image": image})
            bound.run()
            assert np.array_equal(bound.download()["logits"], plain(shared_bundle, image))


def test_a_run_uses_what_was_uploaded_last_and_a_download_changes_nothing(shared_bundle: Path) -> None:
    with OrtRunner(shared_bundle / "model.onnx") as runner:
        bound = runner.bind()
        bound.upload({"image": IMAGES[0]})
        bound.run()
        first = bound.download()["logits"].copy()
        bound.upload({"image": IMAGES[1]})

        assert np.array_equal(bound.download()["logits"], first)
        bound.run()
        assert not np.array_equal(bound.download()["logits"], first)


def test_a_strided_upload_is_made_contiguous(shared_bundle: Path) -> None:
    with OrtRunner(shared_bundle / "model.onnx") as runner:
        bound = runner.bind()
        bound.upload({"image": np.asfortranarray(IMAGES[0])})
        bound.run()

        assert np.array_equal(bound.download()["logits"], plain(shared_bundle, IMAGES[0]))


def test_the_session_says_where_every_node_runs(shared_bundle: Path) -> None:
    with OrtRunner(shared_bundle / "model.onnx") as runner:
        (nodes,) = runner.placement.values()

    assert set(runner.placement) == {"CPUExecutionProvider"}
    assert {"conv1_1", "fc6", "score_pool3"} <= set(nodes)


def test_a_node_elsewhere_is_an_error_that_names_it() -> None:
    placement = {"CUDAExecutionProvider": ("conv1",), "CPUExecutionProvider": ("slice1", "slice2")}

    with pytest.raises(ProviderError) as caught:
        require_placement(Provider.CUDA, ["CUDAExecutionProvider", "CPUExecutionProvider"], placement)

    expected = "provider cuda does not run 2 nodes: slice1 on CPUExecutionProvider, slice2 on CPUExecutionProvider"
    assert caught.value.problem == expected


@pytest.mark.skipif(not hasattr(os, "sched_getaffinity"), reason="the system has no affinities")
def test_threads_stay_on_the_cores_that_the_process_may_use(shared_bundle: Path) -> None:
    """By itself ONNX Runtime starts a thread per core of the machine, and binds each to its own."""
    code = (
        "import os, sys; from pathlib import Path; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from fcn_deploy.runtime.ort import OrtRunner\n"
        "with OrtRunner(Path(sys.argv[1])):\n"
        "    print({min(os.sched_getaffinity(int(t.name))) for t in Path('/proc/self/task').iterdir()})\n"
    )
    command = [sys.executable, "-c", code, str(shared_bundle / "model.onnx")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)

    assert done.stdout.strip() == str({min(os.sched_getaffinity(0))})


def test_clashing_wheels_stop_every_run(shared_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia, "clashing_wheels", lambda: {"onnxruntime": "1.30", "onnxruntime-gpu": "1.31"})

    with (
        pytest.raises(ProviderError, match=r"onnxruntime 1\.30 .*onnxruntime-gpu 1\.31"),
        OrtRunner(shared_bundle / "model.onnx"),
    ):
        pass


@gpu
@needs_cuda
@pytest.mark.parametrize(("options", "bound"), [
    (OrtOptions(Provider.CUDA), 1e-5),
    (OrtOptions(Provider.CUDA, cuda_graph=True), 1e-5),
    (OrtOptions(Provider.CUDA, nhwc=True), 1e-5),
    (OrtOptions(Provider.CUDA, tf32=True), 2e-3),
])  # fmt: skip
def test_cuda_agrees_with_the_cpu_however_it_is_set(shared_bundle: Path, options: OrtOptions, bound: float) -> None:
    with OrtRunner(shared_bundle / "model.onnx", options) as runner:
        assert set(runner.placement) == {"CUDAExecutionProvider"}
        binding = runner.bind()
        for image in (*IMAGES, IMAGES[0]):
            binding.upload({"image": image})
            binding.run()
            expected = plain(shared_bundle, image)
            assert np.abs(binding.download()["logits"] - expected).max() / np.ptp(expected) <= bound


@gpu
@needs_cuda
def test_a_benchmark_on_cuda_measures_every_row(shared_bundle: Path) -> None:
    """All but torch.compile's, which take minutes to compile, and those of TensorRT, which need an engine."""
    import fcn_deploy as fd
    from benchmarks.engine.cases import CASES, Runtime

    rows = [case for case in CASES if case.runtime in (Runtime.PYTORCH, Runtime.ONNXRUNTIME)]
    names = tuple(case.name for case in rows if Provider.CUDA in case.providers)
    quick = fd.Protocol(duration_s=0.05, warmup_s=0.01, rounds=3, ceiling_s=0.1)
    report = fd.bench([shared_bundle], fd.BenchOptions(Provider.CUDA, names, protocol=quick))

    missing = {row.key.case: row.problem for row in report.rows if row.measurement is None}
    assert set(missing.values()) <= {"the bundle computes in fp32, which is not a half precision"}
    on_device = [row for row in report.rows if row.measurement and not row.end_to_end and row.key.case != "session-run"]
    assert len(on_device) > 8
    assert all({"upload", "download"} <= row.measurement.phases_ns.keys() for row in on_device if row.measurement)
