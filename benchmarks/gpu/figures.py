"""The summary of a run on a GPU: target figures, errors by precision, and the predicted limits of each part.

Run as `python -m benchmarks.gpu.figures [fp32|fp16|bf16]` to print the predicted limits of FCN-8s.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from benchmarks.gpu.plan import END_TO_END, PAIRS
from benchmarks.report.page import node_rows
from benchmarks.report.results import BenchReport, Row
from benchmarks.report.table import NOTHING, duration, fastest, markdown_lines
from benchmarks.stats.comparison import Ratio
from exporters.onnx import OnnxOptions, export_graph
from exporters.passes.cost import Machine, machine_of
from exporters.rewrite import exact_passes, rewrite
from exporters.simplify import simplify
from fcn_deploy.choices import Precision, Target, Variant
from fcn_deploy.graph import Layer, layers
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.weights import random_network
from fcn_deploy.parity.tolerance import TIERS

_TO_LABELS = "pixels to labels"
_LARGE_BATCH = 16
_COLUMNS = ("figure", "at least", "found", "rows", "")
_NODE_COLUMNS = ("node", "operator", "time", "of the run", "multiply-adds", "of limit")


@dataclass(frozen=True)
class Figure:
    """One figure, and the value it has to reach."""

    name: str  # the comparison
    least: float  # the value to reach
    rows: tuple[str, ...] = ()  # the rows it is computed from; empty where they were not measured
    found: Ratio | None = None  # the value with its 95 % interval, or None

    @property
    def met(self) -> bool | None:
        """Whether it is reached; None where it was not measured."""
        return None if self.found is None else self.found.value >= self.least

    @property
    def cells(self) -> tuple[str, ...]:
        """Name, bound, value, rows and verdict as texts."""
        found = self.found
        value = NOTHING if found is None else str(found)
        verdict = {None: "not measured", True: "met", False: "missed"}[self.met]
        return self.name, f"{self.least:g}", value, " / ".join(self.rows) or NOTHING, verdict


def figures(report: BenchReport) -> tuple[Figure, ...]:
    """Return the figures of FCN-8s: ratios of medians at batch 1, and at batch 16 the share of the ceiling.

    The first compares pixels to labels with a run from float images to logits, which is less work; the second compares
    it with a run of the same work.
    """
    compute, labels = _measured(report, 1, to_labels=False), _measured(report, 1, to_labels=True)
    ours, plain = _fastest_pair(compute)
    return (
        _times("end to end, against session.run alone on the plain fp32 graph", 8, labels, "session-run", *END_TO_END),
        _times("end to end, against the same with session.run", 8, labels, "session-run-e2e", *END_TO_END),
        _times("end to end, against PyTorch eager fp16 channels last", 3, labels, "pytorch-fp16-e2e", *END_TO_END),
        _times("compute in fp16, against the plain graph with the same options", 1.3, compute, plain, ours),
        _times("compute in fp16, against torch.compile max-autotune", 1, compute, "compile-fp16", ours),
        _share_of_ceiling(report),
    )


def figure_table(report: BenchReport) -> list[str]:
    """Return the figures as lines of Markdown."""
    return markdown_lines(_COLUMNS, [figure.cells for figure in figures(report)])


def markdown(report: BenchReport) -> str:
    """Return figures, tiers, nodes and unmeasured bundles as Markdown."""
    tables: Sequence[tuple[str, Sequence[str], Sequence[Sequence[str]]]] = (
        ("Figures", _COLUMNS, [figure.cells for figure in figures(report)]),
        ("Errors by precision", ("tier", "rows", "largest error / range", "bound", "flips"), _tiers(report)),
        *(
            (f"Nodes of {row.key.network}, {row.key.case}: {_sum_of_nodes(row)}", _NODE_COLUMNS, node_rows(report, row))
            for row in _measured(report, 1, to_labels=False).values()
            if row.nodes and row.key.case in [ours for _, ours in PAIRS]
        ),
        ("Not measured", ("what", "why"), list(report.environment.get("not_measured", {}).items())),
    )
    lines = [f"# {report.machine}", ""]
    for title, columns, body in filter(lambda table: table[-1], tables):
        lines += [f"## {title}", "", *markdown_lines(columns, body), ""]
    return "\n".join(lines)


def _measured(report: BenchReport, batch: int, *, to_labels: bool) -> dict[str, Row]:
    """Return the rows of FCN-8s in fp16 by the name of their case."""
    return {
        row.key.case: row
        for row in report.rows
        if row.measurement is not None
        and row.batch == batch
        and row.key.network.startswith("FCN-8s")
        and " fp16" in row.key.network
        and row.key.network.endswith(_TO_LABELS) is to_labels
    }


def _fastest_pair(rows: Mapping[str, Row]) -> tuple[str, str]:
    """Return our fastest row, and the plain graph's row with the same options."""
    ours = fastest(rows[ours] for _, ours in PAIRS if ours in rows)
    return next(((o, p) for p, o in PAIRS if ours is not None and o == ours.key.case), (PAIRS[-1][1], PAIRS[-1][0]))


def _times(name: str, least: float, rows: Mapping[str, Row], peer: str, *ours: str) -> Figure:
    row = fastest(rows[case] for case in ours if case in rows)
    if row is None or peer not in rows:
        return Figure(name, least)
    return Figure(name, least, (peer, row.key.case), Ratio.of_rows(rows[peer], row))


def _share_of_ceiling(report: BenchReport) -> Figure:
    name = f"batch {_LARGE_BATCH} in fp16, share of the measured matrix ceiling"
    rows = _measured(report, _LARGE_BATCH, to_labels=False)
    row = fastest(rows[ours] for _, ours in PAIRS if ours in rows)
    share = report.limit_share(row) if row is not None else None
    if row is None or row.measurement is None or share is None:
        return Figure(name, 0.45)
    low, high = row.measurement.interval_ns
    median = row.measurement.median_ns
    return Figure(name, 0.45, (row.key.case,), Ratio(share, share * median / high, share * median / low))


def _tiers(report: BenchReport) -> list[tuple[str, ...]]:
    lines: list[tuple[str, ...]] = []
    for tier in TIERS.values():
        rows = [row for row in report.rows if row.precision == tier.name and row.parity]
        errors = [row.worst_error for row in rows if row.worst_error is not None]
        worst = f"{max(errors):.1e}" if errors else NOTHING
        bound = f"{tier.max_error:g}" if tier.max_error is not None else NOTHING
        lines += [(tier.name, str(len(rows)), worst, bound, str(sum(row.flips for row in rows)))] if rows else []
    return lines


def _sum_of_nodes(row: Row) -> str:
    total = duration(sum(node.time_ns for node in row.nodes))
    return f"{total} in all" + (f", {duration(row.measurement.median_ns)} measured" if row.measurement else "")


_GRAPH_BYTES = 4
_PARTS = {"Relu": "ReLUs", "MaxPool": "pools", "Concat": "constants put around windows", "Expand": None}
_LIMITS = ("G multiply-adds", "MB", "µs")
_PREDICTED_COLUMNS = ("part", "plain: nodes", *_LIMITS, "ours: nodes", *_LIMITS)


@dataclass(frozen=True)
class Part:
    """Nodes of one kind."""

    nodes: int  # how many
    multiply_adds: int  # of all of them
    moved_bytes: float  # of their inputs, weights and outputs, each once per node
    limit_s: float  # seconds of all of them, each at its limit

    @classmethod
    def of(cls, found: Iterable[Layer], machine: Machine) -> "Part":
        """Return the part of these layers of a float32 graph, on a machine whose elements may be smaller."""
        work = [(layer.multiply_adds, layer.moved_bytes / _GRAPH_BYTES) for layer in found]
        limits = (max(macs / machine.multiply_adds_per_s, machine.copy_seconds(n)) for macs, n in work)
        moved_bytes = sum(n for _, n in work) * machine.element_bytes
        return cls(len(work), sum(macs for macs, _ in work), moved_bytes, sum(limits))

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts for a table."""
        macs, megabytes = f"{self.multiply_adds / 1e9:.1f}", f"{self.moved_bytes / 1e6:.0f}"
        return str(self.nodes), macs, megabytes, f"{self.limit_s * 1e6:.0f}"


def parts(graph: ir.Model, machine: Machine) -> Mapping[str, Part]:
    """Return the limits of a graph's nodes by part, and of all nodes."""
    named = [(name, layer) for layer in layers(graph) if (name := part_of(layer)) is not None]
    found = {part: Part.of((layer for name, layer in named if name == part), machine) for part, _ in named}
    return found | {"all": Part.of((layer for _, layer in named), machine)}


def part_of(layer: Layer) -> str | None:
    """Return the part that a node belongs to; None for constants, which are computed once, when the graph is loaded."""
    if layer.operator in _PARTS:
        return _PARTS[layer.operator]
    block = re.match(r"conv\d|fc\d", layer.name) if layer.operator == "Conv" else None
    return block[0] if block else "scores and up-sampling"


def main(arguments: Sequence[str]) -> None:
    """Print the plain graph and ours, part by part, as a table in Markdown."""
    precision = Precision(arguments[0]) if arguments else Precision.FP16
    machine = machine_of(Target.CUDA, precision)
    plain = export_graph(random_network(NetworkSpec(Variant.FCN8S), 0), OnnxOptions())
    ours, _ = rewrite(simplify(plain)[0], Target.CUDA, exact_passes(Target.CUDA, precision))
    one, other = parts(plain, machine), parts(ours, machine)
    nothing = Part(0, 0, 0.0, 0.0)
    body = [(name, *one.get(name, nothing).cells, *part.cells) for name, part in other.items()]
    print(machine.source, "", *markdown_lines(_PREDICTED_COLUMNS, body), sep="\n")


if __name__ == "__main__":
    main(sys.argv[1:])
