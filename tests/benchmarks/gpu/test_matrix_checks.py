from pathlib import Path

import pytest

from benchmarks.gpu.matrix import DOCTOR_FILE, QUICK_TESTS, TESTS_FILE, doctor, run_gpu_tests
from fcn_deploy import Provider
from fcn_deploy.runtime.ort import provider_problem


def test_what_doctor_finds_is_written(tmp_path: Path) -> None:
    doctor(tmp_path)

    text = (tmp_path / DOCTOR_FILE).read_text()
    assert "onnxruntime" in text
    assert "provider cuda" in text


@pytest.mark.skipif(provider_problem(Provider.CUDA) is None, reason="they would run here")
@pytest.mark.parametrize("selected", ["", QUICK_TESTS])
def test_the_tests_for_gpus_are_found_and_skipped_without_one(tmp_path: Path, selected: str) -> None:
    run_gpu_tests(tmp_path, 120, selected)

    text = (tmp_path / TESTS_FILE).read_text()
    assert "skipped" in text.splitlines()[-1]
    assert "failed" not in text
    assert "error" not in text.splitlines()[-1]


def test_tests_that_take_too_long_are_stopped(tmp_path: Path) -> None:
    run_gpu_tests(tmp_path, 0.1)

    assert (tmp_path / TESTS_FILE).read_text().endswith("\nstopped after 0 s\n")
