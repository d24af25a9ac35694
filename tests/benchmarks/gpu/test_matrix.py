"""The whole way on a CPU, with narrow networks: exported beside each other, measured one after the other."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from benchmarks.engine.run import BenchOptions
from benchmarks.gpu.__main__ import exit_code, main, write
from benchmarks.gpu.matrix import Matrix, MatrixOptions
from benchmarks.gpu.plan import Entry
from benchmarks.report.results import RowStatus, read_report
from benchmarks.stats.timing import Protocol
from fcn_deploy import Precision, Provider, Variant
from fcn_deploy.progress import Advance
from fcn_deploy.runtime.ort import provider_problem
from tests.benchmarks.reports import report, row

pytestmark = pytest.mark.usefixtures("shared_preparations")
FP32, FP16 = Precision.FP32, Precision.FP16
QUICK = Protocol(duration_s=0.02, warmup_s=0.0, rounds=2, ceiling_s=0.05)
PLAN = (
    Entry(Variant.FCN8S, FP16, ("ort-plain-half", "ort")),
    Entry(Variant.FCN8S, FP32, ("ort",), batch=0),
    Entry(Variant.FCN16S, FP32, ("ort-e2e",), batch=2, labels=True),
    Entry(Variant.FCN16S, FP32, ("ort-nhwc",)),
)


def options(output: Path, seconds: float = 600) -> MatrixOptions:
    return MatrixOptions(output, BenchOptions(Provider.CPU, protocol=QUICK), PLAN, seconds, 96, 16, checks=False)


def test_all_is_measured_in_order_and_a_bundle_that_fails_leaves_the_others(tmp_path: Path) -> None:
    matrix = Matrix(options(tmp_path), write)

    matrix.measure()

    rows = matrix.report.rows
    assert [(row.key.network, row.batch, row.key.case) for row in rows] == [
        ("FCN-8s / 16 fp16", 1, "ort"),
        ("FCN-16s / 16 pixels to labels", 2, "ort-e2e"),
    ]
    assert all(row.measurement is not None and row.parity for row in rows)
    assert matrix.problems.keys() == {"FCN-8s fp32, batch 0"}
    assert "batch 0" in matrix.problems["FCN-8s fp32, batch 0"]
    # The nodes of the first bundle's last row are timed, and all of it is on disk.
    assert {"Conv", "ConvTranspose"} & {node.operator for node in rows[0].nodes}
    written, figures = read_report(tmp_path / "latency.json"), (tmp_path / "figures.md").read_text()
    assert written.rows == rows
    assert written.environment["not_measured"] == matrix.problems
    assert "Nodes of FCN-8s / 16 fp16, ort: " in figures
    assert "batch 0" in figures
    assert {path.name for path in tmp_path.iterdir()} == {"latency.json", "latency.md", "figures.md"}


def test_a_bundle_for_which_there_is_no_time_is_named(tmp_path: Path) -> None:
    matrix = Matrix(replace(options(tmp_path, seconds=0), plan=PLAN[:1]), write)

    matrix.measure()

    assert matrix.report.rows == ()
    assert set(matrix.problems.values()) == {"the time budget was used up"}
    assert matrix.problems.keys() == {str(PLAN[0])}
    assert list(tmp_path.iterdir()) == []


def test_a_short_run_times_no_nodes_and_first_leaves_out_what_compiles(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("benchmarks.gpu.matrix._COMPILING_S", 1000.0)
    steps = []

    @contextlib.contextmanager
    def record(step: str, _parts: int = 1, /) -> Iterator[Advance]:
        steps.append(step.partition(",")[0])
        yield lambda: None

    plan = (Entry(Variant.FCN8S, FP32, ("compile", "ort")),)
    matrix = Matrix(replace(options(tmp_path, seconds=200), plan=plan), write, record)

    matrix.measure()

    assert [(row.key.case, row.status) for row in matrix.report.rows] == [("ort", "measured")]
    assert matrix.problems == {"FCN-8s fp32, batch 1: compile": "the time budget was used up"}
    assert steps == ["measure the ceilings of the device", "FCN-8s fp32"]


def test_an_interruption_keeps_what_is_known(tmp_path: Path) -> None:
    calls = []

    def interrupt(running: Matrix) -> None:
        calls.append(dict(running.problems))
        if len(calls) == 1:
            raise KeyboardInterrupt

    matrix = Matrix(replace(options(tmp_path), plan=PLAN[1:3]), interrupt)
    matrix.measure()

    assert matrix.report.interrupted
    assert [known.keys() for known in calls] == [{"FCN-8s fp32, batch 0"}] * 2


@pytest.mark.parametrize(("statuses", "code"), [
    (("measured", "skipped"), 0), (("measured", "wrong", "failed"), 5), (("measured", "failed"), 6),
    (("measured", "out of memory"), 6), (("skipped",), 6), ((), 6),
])  # fmt: skip
def test_the_exit_code_says_what_went_wrong(statuses: tuple[str, ...], code: int) -> None:
    rows = (replace(row("ort", 1.0), status=RowStatus(status)) for status in statuses)

    assert exit_code(report(*rows)) == code


@pytest.mark.skipif(provider_problem(Provider.CUDA) is None, reason="CUDA works here")
def test_without_a_gpu_it_says_what_to_install(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "out")]) == 4
    assert "provider cuda" in capsys.readouterr().err
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["doctor.txt"]
