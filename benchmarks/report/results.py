"""A benchmark's outcome: one row per case and bundle, with raw samples, and the environment it was measured in."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any

from benchmarks.engine.ceilings import Ceilings, Work
from benchmarks.stats.nodes import NodeTime
from benchmarks.stats.timing import Measurement
from fcn_deploy.errors import InputFileError
from fcn_deploy.parity.report import json_ready
from fcn_deploy.storage import staged_file

SCHEMA = "fcn-deploy benchmark"
SCHEMA_VERSION = 1


class Status(StrEnum):
    """How a row ended."""

    MEASURED = "measured"
    WRONG = "wrong"  # its outputs are not the reference's: no latency is reported
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"
    SKIPPED = "skipped"  # cannot run here
    PENDING = "pending"  # not finished, or interrupted before its first sample


@dataclass(frozen=True)
class RowKey:
    """What makes rows of two reports comparable: everything but versions and settings.

    Attributes:
        network: e.g. `FCN-8s`, with its divisor when it is narrow.
        shape: N x 3 x H x W.
        case: name of the case.
        provider: where it ran.
    """

    network: str
    shape: tuple[int, int, int, int]
    case: str
    provider: str

    def __str__(self) -> str:
        batch, _, height, width = self.shape
        return f"{self.network} {height}x{width} batch {batch} {self.case} on {self.provider}"


@dataclass(frozen=True)
class Row:
    """One row of a report.

    Attributes:
        key: what was measured.
        runtime: what computed, with its version once it was loaded.
        graph: which graph.
        precision: the arithmetic, and the parity tier.
        options: what was set.
        end_to_end: from uint8 pixels to uint8 labels on the host.
        work: what one run has to do.
        status: how it ended.
        problem: why it has no latency, or the bounds of parity it breaks; empty otherwise.
        load_ns: nanoseconds until it was ready to run.
        peak_bytes: most resident memory of its process on the host; 0 when unknown.
        placement: number of nodes per execution provider.
        parity: for every input, how its outputs differ from the reference's, as figures by name.
        measurement: its latencies, or None.
        nodes: the slowest nodes, where the runtime has a profiler that can be read.
        group: rows of one bundle and group took turns; there is more than one where memory was too short for all.
    """

    key: RowKey
    runtime: str
    graph: str
    precision: str
    options: str
    end_to_end: bool
    work: Work
    status: Status = Status.PENDING
    problem: str = ""
    load_ns: int = 0
    peak_bytes: int = 0
    placement: Mapping[str, int] = field(default_factory=dict)
    parity: tuple[Mapping[str, Any], ...] = ()
    measurement: Measurement | None = None
    nodes: tuple[NodeTime, ...] = ()
    group: int = 0

    @property
    def batch(self) -> int:
        """Images per run."""
        return self.key.shape[0]

    @property
    def images_per_s(self) -> float | None:
        """Images per second at the median."""
        return self.batch / self.measurement.median_ns * 1e9 if self.measurement else None

    @property
    def worst_error(self) -> float | None:
        """Largest logit error over the reference's logit range; None where only labels came out."""
        errors = [float(c["relative_error"]) for c in self.parity if "relative_error" in c]
        return max(errors) if errors else None

    @property
    def flips(self) -> int:
        """Labels that differ from the reference's, over all inputs."""
        return sum(int(c["flips"]) for c in self.parity)

    def to_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        plain = {name: getattr(self, name) for name in ("runtime", "graph", "precision", "options", "end_to_end")}
        return {
            **vars(self.key),
            **plain,
            **vars(self.work),
            "status": str(self.status),
            "problem": self.problem,
            "load_ns": self.load_ns,
            "peak_bytes": self.peak_bytes,
            "placement": dict(self.placement),
            "parity": [json_ready(c) for c in self.parity],
            "measurement": self.measurement.to_dict() if self.measurement else None,
            "group": self.group,
            "nodes": [node.to_dict() for node in self.nodes],
        }

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Row":
        """Read back what `to_dict` wrote."""
        batch, channels, height, width = (int(n) for n in document["shape"])
        measured = document["measurement"]
        names = ("runtime", "graph", "precision", "options", "end_to_end", "problem", "load_ns", "peak_bytes", "group")
        return cls(
            key=RowKey(document["network"], (batch, channels, height, width), document["case"], document["provider"]),
            work=Work(int(document["multiply_adds"]), int(document["least_bytes"])),
            status=Status(document["status"]),
            placement=dict(document["placement"]),
            parity=tuple(document["parity"]),
            measurement=Measurement.from_dict(measured) if measured else None,
            nodes=tuple(NodeTime(**node) for node in document["nodes"]),
            **{name: document[name] for name in names},
        )


@dataclass(frozen=True)
class BenchReport:
    """A whole benchmark.

    Attributes:
        environment: where it ran, JSON-ready.
        protocol: how samples were taken, JSON-ready.
        rows: what was measured, in order.
        ceilings: what the device did at best, or None when that could not be measured.
        interrupted: whether the user stopped it.
    """

    environment: Mapping[str, Any]
    protocol: Mapping[str, Any]
    rows: tuple[Row, ...]
    ceilings: Ceilings | None = None
    interrupted: bool = False

    def limit_share(self, row: Row) -> float | None:
        """How much of what the device can do a row reached: its limit over its median; None when unknown."""
        limit = self.ceilings.limit_ns(row.work, row.precision) if self.ceilings else None
        return limit / row.measurement.median_ns if limit and row.measurement else None

    @property
    def machine(self) -> str:
        """The device in a few words: the GPU's name for rows that ran on one, else the processor's and its cores."""
        on_gpu = any(row.key.provider != "cpu" for row in self.rows)
        gpus = self.environment.get("gpus") or []
        if on_gpu and gpus:
            return str(gpus[0]["name"])
        return f"{self.environment['cpu']}, {self.environment['cores']} cores"

    def to_dict(self) -> dict[str, Any]:
        """Everything, for JSON."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "interrupted": self.interrupted,
            "environment": dict(self.environment),
            "protocol": dict(self.protocol),
            "ceilings": self.ceilings.to_dict() if self.ceilings else None,
            "rows": [row.to_dict() for row in self.rows],
        }


def write_report(report: BenchReport, path: Path) -> None:
    """Write a report as JSON, in one move.

    Raises:
        OutputError: it cannot be written.
    """
    with staged_file(path) as staging:
        staging.write_text(json.dumps(report.to_dict(), allow_nan=False) + "\n", encoding="utf-8")


def read_report(path: Path) -> BenchReport:
    """Read a report back.

    Raises:
        InputFileError: missing, damaged, no report, or one of another schema version.
    """
    try:
        document = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise InputFileError(
            f"{path}: {error.strerror}", remedy="Pass what `fcn-deploy bench --json` wrote."
        ) from error
    except ValueError as error:
        raise InputFileError(
            f"{path} is no JSON: {error}", remedy="Pass what `fcn-deploy bench --json` wrote."
        ) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputFileError(f"{path} is no benchmark report", remedy="Pass what `fcn-deploy bench --json` wrote.")
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputFileError(
            f"{path} has schema version {document.get('schema_version')}; this fcn-deploy reads {SCHEMA_VERSION}",
            remedy="Measure again with this version, or read it with the one that wrote it.",
        )
    try:
        return _from_dict(document)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise InputFileError(
            f"{path} is damaged: {type(error).__name__} {error}", remedy="Measure again, or copy it again."
        ) from error


def _from_dict(document: Mapping[str, Any]) -> BenchReport:
    ceilings = document["ceilings"]
    return BenchReport(
        environment=dict(document["environment"]),
        protocol=dict(document["protocol"]),
        rows=tuple(Row.from_dict(row) for row in document["rows"]),
        ceilings=Ceilings.from_dict(ceilings) if ceilings is not None else None,
        interrupted=bool(document["interrupted"]),
    )
