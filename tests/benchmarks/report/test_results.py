import json
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from benchmarks.report.results import NodeTime, read_report, write_report
from fcn_deploy.errors import InputFileError
from tests.benchmarks.reports import report, row

REPORT = report(row("ort", 2.0, 2.1, 2.2), row("pytorch"))


def damaged(path: Path, **changes: Any) -> Path:
    write_report(REPORT, path)
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))
    return path


def test_a_report_survives_its_file(tmp_path: Path) -> None:
    path = tmp_path / "report.json"

    write_report(REPORT, path)

    assert read_report(path) == REPORT


def test_nodes_and_placement_survive_too(tmp_path: Path) -> None:
    full = replace(row("ort", 1.0), nodes=(NodeTime("a", "Conv", 1.5, 2, 3),), placement={"CPUExecutionProvider": 3})
    path = tmp_path / "report.json"

    write_report(report(full), path)

    assert read_report(path).rows == (full,)


def test_derived_figures_stand_in_the_file_too(tmp_path: Path) -> None:
    write_report(REPORT, tmp_path / "report.json")

    measured = json.loads((tmp_path / "report.json").read_text())["rows"][0]["measurement"]

    assert measured["median_ns"] == 2_100_000
    assert measured["rounds_ns"] == [[2_000_000], [2_100_000], [2_200_000]]


def test_share_of_the_limit() -> None:
    """175 G multiply-adds at 90 G a second take 1.944 s."""
    (measured,) = report(row("ort", 2000.0)).rows

    assert report(measured).limit_share(measured) == pytest.approx(1.9444 / 2, rel=1e-4)
    assert report(measured).direct_limit_share(measured) == pytest.approx(1.9444, rel=1e-4)
    assert report(measured, ceilings=None).limit_share(measured) is None


@pytest.mark.parametrize(("changes", "problem"), [
    ({"schema": "something"}, "is not a benchmark report"),
    ({"schema_version": 1}, r"schema version 1\b.*\b2\b"),
    ({"ceilings": {"copied_bytes_per_s": 0.0, "multiply_adds_per_s": {}}}, r"Expected `float` > 0.0 - at `\$.ceilings"),
    ({"environment": {}}, "missing required field `date`"),
    ({"protocol": {"duration_s": 1.0}}, "missing required field `rounds`"),
    ({"rows": [{}]}, r"report.json.*damaged.* `network`.*rows\[0\]"),
    ({"rows": 3}, r"report.json.*damaged.*rows"),
    ({"ceilings": {}}, r"report.json.*damaged.*`copied_bytes_per_s`.*ceilings"),
    ({"x": float("nan")}, r"report.json.*NaN"),
])  # fmt: skip
def test_damaged_reports(tmp_path: Path, changes: dict[str, Any], problem: str) -> None:
    with pytest.raises(InputFileError, match=problem) as caught:
        read_report(damaged(tmp_path / "report.json", **changes))

    assert caught.value.exit_code == 3
    assert caught.value.remedy


@pytest.mark.parametrize("key", ["ceilings", "interrupted"])
def test_reports_that_lack_a_field(tmp_path: Path, key: str) -> None:
    path = tmp_path / "report.json"
    write_report(REPORT, path)
    document = json.loads(path.read_text())
    del document[key]
    path.write_text(json.dumps(document))

    with pytest.raises(InputFileError, match=rf"report.json.*`{key}`"):
        read_report(path)


@pytest.mark.parametrize("key", [
    "status", "problem", "load_ns", "peak_bytes", "placement", "parity", "measurement", "nodes", "first_turn",
])  # fmt: skip
def test_rows_that_lack_a_field(tmp_path: Path, key: str) -> None:
    path = tmp_path / "report.json"
    write_report(REPORT, path)
    document = json.loads(path.read_text())
    del document["rows"][1][key]
    path.write_text(json.dumps(document))

    with pytest.raises(InputFileError, match=rf"report.json.*`{key}`.*rows\[1\]"):
        read_report(path)


def test_a_path_that_is_no_utf_8_survives_its_file(tmp_path: Path) -> None:
    given = report(replace(row("pytorch"), problem=os.fsdecode(b"no module b-\xff")))

    write_report(given, tmp_path / "report.json")

    assert read_report(tmp_path / "report.json") == given


@pytest.mark.parametrize(("content", "problem"), [
    (b"", "JSON"), (b"{", "JSON"), (b"[1]", "report"), (b'{"schema": "\xff"}', "JSON"), (b"[" * 100_000, "JSON"),
])  # fmt: skip
def test_files_that_are_no_reports(tmp_path: Path, content: bytes, problem: str) -> None:
    path = tmp_path / "report.json"
    path.write_bytes(content)

    with pytest.raises(InputFileError, match=problem):
        read_report(path)


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(InputFileError, match=r"none\.json: No such file"):
        read_report(tmp_path / "none.json")


def test_the_machine_is_the_gpu_where_rows_ran_on_one() -> None:
    environment = {**REPORT.environment, "gpus": [{"name": "NVIDIA H100", "driver": "580"}]}

    assert REPORT.machine == "Test CPU, 2 cores"
    assert report(row("ort", 1.0), environment=environment).machine == "Test CPU, 2 cores"
    assert report(row("ort", 1.0, provider="cuda"), environment=environment).machine == "NVIDIA H100"
