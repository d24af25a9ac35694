"""docs/schemas/ is what the code reads, and accepts what it writes."""

import json
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator

from benchmarks.report.results import write_report
from tests.benchmarks.reports import report, row
from tests.schemas import FOLDER, schemas, text


@pytest.mark.parametrize("name", schemas())
def test_the_published_schemas_are_those_of_the_classes(name: str) -> None:
    """After a change: `python -m tests.schemas`."""
    assert (FOLDER / name).read_text() == text(schemas()[name])
    assert sorted(path.name for path in FOLDER.iterdir()) == sorted(schemas())
    Draft202012Validator.check_schema(schemas()[name])


def test_a_manifest_is_valid_and_a_changed_one_is_not(shared_bundle: Path) -> None:
    schema, manifest = schemas()["manifest.json"], json.loads((shared_bundle / "manifest.json").read_bytes())

    assert errors(schema, manifest) == []
    assert errors(schema, {**manifest, "files": {"model.onnx": {"bytes": -1, "sha256": "0" * 64}}}) != []


def test_a_report_is_valid_and_a_changed_one_is_not(tmp_path: Path) -> None:
    write_report(report(row("ort", 2000.0, 2004.0, 1998.0)), tmp_path / "latency.json")
    schema, found = schemas()["benchmark.json"], json.loads((tmp_path / "latency.json").read_bytes())

    assert errors(schema, found) == []
    assert errors(schema, {**found, "rows": [{**found["rows"][0], "shape": "x"}]}) != []


def errors(schema: Any, document: Any) -> list[str]:
    return [error.message for error in Draft202012Validator(schema).iter_errors(document)]
