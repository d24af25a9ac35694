"""The outcome of a benchmark: the contents of a report, and its JSON file."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec

from benchmarks.stats.timing import Measurement
from fcn_deploy.errors import InputFileError
from fcn_deploy.parity.report import json_ready
from fcn_deploy.storage import parse_json, staged_file

SCHEMA = "fcn-deploy benchmark"
SCHEMA_VERSION = 2


class RowStatus(StrEnum):
    """How a row ended."""

    MEASURED = "measured"
    WRONG = "wrong"  # its outputs differ from the reference's: no latency is reported
    OUT_OF_MEMORY = "out of memory"
    FAILED = "failed"
    SKIPPED = "skipped"  # cannot run here
    PENDING = "pending"  # not finished, or interrupted before the first sample


_Rate = Annotated[float, msgspec.Meta(gt=0)]
_Count = Annotated[int, msgspec.Meta(ge=0)]
_Size = Annotated[int, msgspec.Meta(ge=1)]


@dataclass(frozen=True)
class RowKey:
    """What identifies a row across reports: everything but versions and settings."""

    network: str  # e.g. `FCN-8s`, with its divisor when it is narrow.
    shape: tuple[_Size, _Size, _Size, _Size]  # N x 3 x H x W
    case: str  # name of the case
    provider: str  # where it ran

    def __str__(self) -> str:
        batch, _, height, width = self.shape
        return f"{self.network} {height}x{width} batch {batch} {self.case} on {self.provider}"


@dataclass(frozen=True)
class WorkEstimate:
    """The least work of one run, whatever the runtime."""

    multiply_adds: _Count  # of all convolutions and matrix products of the graph as it is
    least_bytes: _Size  # input, weights and output, each moved once
    direct_multiply_adds: _Count  # of the same convolutions without a fast algorithm

    @property
    def direct(self) -> "WorkEstimate":
        """Return the work with direct convolutions."""
        return replace(self, multiply_adds=self.direct_multiply_adds)


@dataclass(frozen=True)
class Ceilings:
    """The highest measured rates of a device."""

    copied_bytes_per_s: _Rate  # bytes read plus bytes written by a large copy
    multiply_adds_per_s: Mapping[str, _Rate]  # of a large matrix product, by compute precision

    def limit_ns(self, work: WorkEstimate, precision: str) -> float | None:
        """Return the shortest time `work` can take in that precision; None when its ceiling was not measured."""
        rate = self.multiply_adds_per_s.get(precision)
        if rate is None:
            return None
        return max(work.multiply_adds / rate, work.least_bytes / self.copied_bytes_per_s) * 1e9

    def at_best(self, other: "Ceilings | None") -> "Ceilings":
        """Return the higher of two measurements of the same device, rate by rate."""
        if other is None:
            return self
        rates = {
            name: max(rate, other.multiply_adds_per_s.get(name, 0.0)) for name, rate in self.multiply_adds_per_s.items()
        }
        return Ceilings(max(self.copied_bytes_per_s, other.copied_bytes_per_s), rates)


@dataclass(frozen=True)
class NodeTime:
    """One node as a runtime ran it."""

    name: str  # after the runtime's own fusions, so not always a name in the graph
    operator: str  # ONNX's, or the runtime's own
    time_ns: float  # median over the profiled runs
    multiply_adds: int  # of a convolution or transposed convolution, with the channels that the runtime pads; else 0
    moved_bytes: int  # inputs, weights and outputs, each once


@dataclass(frozen=True)
class Row:
    """One row of a report.

    Attributes:
        key: what was measured.
        runtime: the runtime's name, with its version once it was loaded.
        graph: which graph.
        precision: the compute precision, and the parity tier.
        options: the runtime's settings.
        end_to_end: from uint8 pixels to uint8 labels on the host.
        work: the least work of one run.
        status: how it ended.
        problem: why it has no latency, or the parity bounds it exceeds; empty otherwise.
        load_ns: nanoseconds until it was ready to run.
        peak_bytes: largest resident memory of its process on the host; 0 when unknown.
        placement: number of nodes per execution provider.
        parity: for every input, how its outputs differ from the reference's, as figures by name.
        measurement: its latencies, or None.
        nodes: the slowest nodes, where the runtime's profile can be read.
        first_turn: the turn of its bundle's rows in which it was first sampled; not 0 for all rows where memory was
            too short for all of them at once.
    """

    key: RowKey
    runtime: str
    graph: str
    precision: str
    options: str
    end_to_end: bool
    work: WorkEstimate
    status: RowStatus = RowStatus.PENDING
    problem: str = ""
    load_ns: int = 0
    peak_bytes: int = 0
    placement: Mapping[str, int] = field(default_factory=dict)
    parity: tuple[Mapping[str, Any], ...] = ()
    measurement: Measurement | None = None
    nodes: tuple[NodeTime, ...] = ()
    first_turn: int = 0

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
        """Largest logit error over the reference's logit range; None where the outputs are labels."""
        errors = [float(c["relative_error"]) for c in self.parity if "relative_error" in c]
        return max(errors) if errors else None

    @property
    def flips(self) -> int:
        """Labels that differ from the reference's, over all inputs."""
        return sum(int(c["flips"]) for c in self.parity)

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON; key and work are flattened into the row."""
        document = asdict(self)
        flat = {**document.pop("key"), **document.pop("work"), **document}
        measurement = self.measurement.to_dict() if self.measurement else None
        return {**flat, "parity": json_ready(document["parity"]), "measurement": measurement}


@dataclass(frozen=True)
class BenchReport:
    """A whole benchmark.

    Attributes:
        environment: where it ran, JSON-ready.
        protocol: how samples were taken, JSON-ready.
        rows: what was measured, in order.
        ceilings: the highest rates of the device, or None when they could not be measured.
        interrupted: whether the user stopped it.
    """

    environment: Mapping[str, Any]
    protocol: Mapping[str, Any]
    rows: tuple[Row, ...]
    ceilings: Ceilings | None = None
    interrupted: bool = False

    def limit_share(self, row: Row) -> float | None:
        """Return the shortest possible time of a row's graph over its median; None when either is unknown."""
        return self._share(row, row.work)

    def direct_limit_share(self, row: Row) -> float | None:
        """Return the same with direct convolutions, which fast ones can surpass."""
        return self._share(row, row.work.direct)

    def _share(self, row: Row, work: WorkEstimate) -> float | None:
        limit = self.ceilings.limit_ns(work, row.precision) if self.ceilings else None
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
        """Return everything, for JSON."""
        return {
            "schema": SCHEMA,
            "schema_version": SCHEMA_VERSION,
            "interrupted": self.interrupted,
            "environment": dict(self.environment),
            "protocol": dict(self.protocol),
            "ceilings": asdict(self.ceilings) if self.ceilings else None,
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
    """Read a report that `write_report` wrote. Fields that it does not know are ignored.

    Raises:
        InputFileError: missing, not JSON, not a report, of another schema version, or damaged (names the field).
    """
    remedy = "Pass a file that `fcn-deploy bench --json` wrote."
    try:
        document = parse_json(path.read_bytes())
    except OSError as error:
        raise InputFileError(f"{path}: {error.strerror}", remedy=remedy) from error
    except ValueError as error:
        raise InputFileError(f"{path} is not JSON: {error}", remedy=remedy) from error
    if not isinstance(document, dict) or document.get("schema") != SCHEMA:
        raise InputFileError(f"{path} is not a benchmark report", remedy=remedy)
    if document.get("schema_version") != SCHEMA_VERSION:
        raise InputFileError(
            f"{path} has schema version {document.get('schema_version')}; this fcn-deploy reads {SCHEMA_VERSION}",
            remedy="Measure again with this version, or read it with the one that wrote it.",
        )
    try:
        rows = _nested(document.get("rows"))
        report = msgspec.convert({**document, "rows": rows}, BenchReport)
        _check_complete(BenchReport, document, "$")
        for number, row in enumerate(rows):
            _check_complete(Row, row, f"$.rows[{number}]")
            # Infinite errors are written as text.
            msgspec.convert(row["parity"], tuple[ComparedInput, ...], strict=False)
        msgspec.convert(document["environment"], EnvironmentFacts)
        msgspec.convert(document["protocol"], ProtocolFacts)
    except ValueError as error:
        raise InputFileError(f"{path} is damaged: {error}", remedy="Measure again, or copy it again.") from error
    return report


@dataclass(frozen=True)
class ComparedInput:
    """The figures of an input that are read back; all others are a record for people."""

    flips: int  # labels that differ from the reference's
    relative_error: float = 0.0  # max error over the reference's range


@dataclass(frozen=True)
class GpuFacts:
    """The facts about a GPU that are read back."""

    name: str
    driver: str
    memory_bytes: int = 0
    power_limit_w: float = 0.0
    other_processes: int = 0
    other_processes_bytes: int = 0


_Range = tuple[float, float]


@dataclass(frozen=True)
class GpuRanges:
    """The state of a GPU while rows ran, lowest and highest."""

    name: str
    throttled_by: tuple[str, ...]
    sm_mhz: _Range = (0, 0)
    memory_mhz: _Range = (0, 0)
    power_w: _Range = (0, 0)


@dataclass(frozen=True)
class EnvironmentFacts:
    """The facts about a machine that are read back; all others are a record for people."""

    date: datetime
    cpu: str
    cores: int
    system: str
    clock_overhead_ns: float
    versions: Mapping[str, str]
    command: tuple[str, ...]
    commit: str | None = None
    busy_cores_before: float | None = None
    stolen_share: float | None = None
    gpus: tuple[GpuFacts, ...] = ()
    gpus_during: tuple[GpuRanges, ...] = ()
    not_measured: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class ProtocolFacts:
    """The settings of a run that are read back."""

    duration_s: float
    rounds: int


def _check_complete(kind: type[BenchReport | Row], document: Mapping[str, Any], place: str) -> None:
    """Raise a ValidationError if a field is missing; only a row that is still measured has default values."""
    for name in (f.name for f in fields(kind) if f.name not in document):
        raise msgspec.ValidationError(f"Object missing required field `{name}` - at `{place}`")


def _nested(rows: Any) -> Any:
    """Return rows with key and work as objects of their own; `Row.to_dict` flattens them."""
    if not isinstance(rows, list):
        return rows
    return [{**row, "key": row, "work": row} if isinstance(row, dict) else row for row in rows]
