"""The JSON Schemas of docs/schemas/, of the classes that files are read into; `python -m tests.schemas` writes them."""

import json
from pathlib import Path
from typing import Any

import msgspec

from benchmarks.report.results import SCHEMA, BenchReport, ComparedInput, EnvironmentFacts, ProtocolFacts, Row
from exporters.triton.repository import _Record
from fcn_deploy.artifact.bundle import _Manifest
from fcn_deploy.artifact.engine import Engine
from fcn_deploy.evaluation.scores import ImageRecord

FOLDER = Path(__file__).parent.parent / "docs" / "schemas"
_DRAFT = "https://json-schema.org/draft/2020-12/schema"
# The matrix of an image is written as its non-zero cells: position and count.
_CELLS = {"type": "array", "items": {"type": "array", "prefixItems": [{"type": "integer"}] * 2}}


def schemas() -> dict[str, Any]:
    """Return each schema by the name of its file."""
    report = _schema(BenchReport, "a file that `bench --json` writes", EnvironmentFacts, ProtocolFacts, ComparedInput)
    report["properties"] |= {
        "schema": {"const": SCHEMA},
        "environment": {"$ref": "#/$defs/EnvironmentFacts"},
        "protocol": {"$ref": "#/$defs/ProtocolFacts"},
    }
    _flatten(report, Row, ("key", "work"))
    report["$defs"]["Row"]["properties"]["parity"]["items"] = {"$ref": "#/$defs/ComparedInput"}
    journal = _schema(ImageRecord, "a line of journal.jsonl but the first, which maps conditions to text")
    return {
        "manifest.json": _schema(_Manifest, "manifest.json of a bundle; further fields are a record for people"),
        "engine.json": _schema(Engine, "NAME.plan.json beside a TensorRT engine"),
        "package.json": _schema(_Record, "triton-package.json of a package; further fields are a record for people"),
        "journal-line.json": journal,
        "benchmark.json": report,
    }


def _schema(kind: type, description: str, *parts: type) -> dict[str, Any]:
    (reference, *_), definitions = msgspec.json.schema_components([kind, *parts], schema_hook=_hook)
    root = definitions.pop(reference["$ref"].rpartition("/")[2])
    root.pop("title", None)
    found = {"$schema": _DRAFT, "description": description, **{k: v for k, v in root.items() if k != "description"}}
    document: dict[str, Any] = json.loads(
        json.dumps(found | {"$defs": definitions}).replace("#/components/schemas/", "#/$defs/")
    )
    return document


def _hook(kind: type) -> dict[str, Any]:
    return {"type": "string"} if kind is Path else _CELLS


def _flatten(document: dict[str, Any], kind: type, members: tuple[str, ...]) -> None:
    """Move the properties of some members into the object itself, as it is written."""
    definitions = document["$defs"]
    row = definitions[kind.__name__]
    for member in members:
        inner = definitions.pop(row["properties"].pop(member)["$ref"].rpartition("/")[2])
        row["properties"] |= inner["properties"]
        row["required"] = [name for name in row["required"] if name != member] + inner["required"]


def text(schema: Any) -> str:
    """Return a schema as its file holds it."""
    return json.dumps(schema, indent=2, sort_keys=True) + "\n"


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    for name, schema in schemas().items():
        (FOLDER / name).write_text(text(schema), encoding="utf-8")
