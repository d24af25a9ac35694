from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.gpu_matrix import MatrixOptions, exit_code, main, measure_matrix
from benchmarks.options import BenchOptions
from benchmarks.results import Status, read_report
from benchmarks.timing import Protocol
from fcn_deploy import Precision, Provider, Variant
from fcn_deploy.runtime.ort import provider_problem
from tests.benchmarks.reports import report, row

FP32, FP16 = Precision.FP32, Precision.FP16
QUICK = BenchOptions(Provider.CPU, ("ort",), protocol=Protocol(duration_s=0.02, warmup_s=0.0, rounds=2, ceiling_s=0.05))


def test_bundles_are_measured_in_order_and_one_that_fails_leaves_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plan = ((Variant.FCN8S, 0, FP32), (Variant.FCN8S, 1, FP16), (Variant.FCN32S, 2, FP32))

    report = measure_matrix(MatrixOptions(tmp_path, QUICK, plan, 600, 96, 16))

    assert report is not None
    assert "FCN-8s, batch 0: batch 0 is below 1" in capsys.readouterr().err
    assert [(row.key.network, row.batch) for row in report.rows] == [("FCN-8s / 16 fp16", 1), ("FCN-32s / 16", 2)]
    assert all(row.measurement is not None for row in report.rows)
    assert read_report(tmp_path / "latency.json").rows == report.rows
    assert {p.name for p in tmp_path.iterdir()} == {"latency.json", "latency.md", "latency.html"}


@pytest.mark.parametrize(("statuses", "code"), [
    (("measured", "skipped"), 0), (("measured", "wrong", "failed"), 5), (("measured", "failed"), 6),
    (("measured", "out of memory"), 6), (("skipped",), 6),
])  # fmt: skip
def test_the_exit_code_says_what_went_wrong(statuses: tuple[str, ...], code: int) -> None:
    rows = (replace(row("ort", 1.0), status=Status(status)) for status in statuses)

    assert exit_code(report(*rows)) == code


def test_no_bundle_is_begun_without_time(tmp_path: Path) -> None:
    assert measure_matrix(MatrixOptions(tmp_path, QUICK, seconds=-1)) is None
    assert list(tmp_path.iterdir()) == []


@pytest.mark.skipif(provider_problem(Provider.CUDA) is None, reason="CUDA works here")
def test_without_a_gpu_it_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "out")]) == 4
    assert "provider cuda" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
