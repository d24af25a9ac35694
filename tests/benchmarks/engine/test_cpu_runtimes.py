"""ncnn and MNN as rows: converted from both graphs, compared with PyTorch, and marked where their error is larger."""

from pathlib import Path

import pytest

import fcn_deploy as fd
from benchmarks.engine.cases import CASES, Runtime, missing_runtime, problem_with
from benchmarks.report import table
from benchmarks.report.results import BenchReport, RowStatus
from fcn_deploy.errors import UsageError
from tests.messages import states

PEERS = ("ncnn-plain", "ncnn", "mnn-plain", "mnn", "openvino-bf16")


@pytest.fixture(scope="module")
def report(shared_bundle: Path) -> BenchReport:
    for runtime in (Runtime.NCNN, Runtime.MNN):
        if missing_runtime(runtime) is not None:
            pytest.skip(f"{runtime} is not installed")
    options = fd.BenchOptions(rows=("ort", *PEERS), protocol=fd.Protocol.of_duration(0.05), answer_s=100)
    return fd.bench([shared_bundle], options)


def test_every_peer_computes_the_network(report: BenchReport) -> None:
    rows = {row.key.case: row for row in report.rows}

    assert {name: row.status for name, row in rows.items()} == dict.fromkeys(rows, RowStatus.MEASURED)
    for name, bound in {
        "ncnn-plain": 1e-5,
        "ncnn": 1e-5,
        "mnn-plain": 1e-3,
        "mnn": 1e-3,
        "openvino-bf16": 3e-2,
    }.items():
        assert 0 < (rows[name].worst_error or 0) < bound, name
    assert rows["ncnn"].runtime.startswith("ncnn 1.0.")
    assert rows["mnn"].runtime.startswith("MNN 3.")


def test_a_peer_beyond_the_tier_is_marked_and_shown(report: BenchReport) -> None:
    beyond = [row for row in report.rows if row.problem]

    for row in beyond:
        cells = dict(zip(table.COLUMNS, table.cells(report, row, None), strict=True))
        assert f"beyond {row.precision}" in cells["note"]
        assert cells["median"] != table.NOTHING
        assert row.problem.startswith(f"beyond {row.precision}")


def test_ncnn_has_no_batches(shared_bundle: Path) -> None:
    case = next(case for case in CASES if case.name == "ncnn")
    info = fd.open_bundle(shared_bundle).info

    assert problem_with(case, info) is None
    assert "batches" in (problem_with(case, info, batch=4) or "")


def test_a_missing_peer_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)

    with pytest.raises(UsageError, check=states("mnn 'fcn-deploy[mnn]'")):
        fd.bench([Path("none")], fd.BenchOptions(rows=("mnn",)))
