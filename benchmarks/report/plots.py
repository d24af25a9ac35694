"""Plots of a report as SVG text for a page, whose text colour (light or dark) they adopt."""

import io
import re
from collections import defaultdict
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.report.results import BenchReport, Row, RowKey

# Replaced by the page's text colour at the end.
_INK = "#010203"
# Okabe and Ito's colours, which colour-blind readers can distinguish, on white and on black.
_COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#999999")
_WIDTH_IN = 8.0
_STYLE: Any = {
    "svg.fonttype": "none", "font.size": 11, "font.family": "sans-serif", "text.color": _INK, "axes.labelcolor": _INK,
    "axes.edgecolor": _INK, "xtick.color": _INK, "ytick.color": _INK, "axes.spines.top": False,
    "axes.spines.right": False, "legend.frameon": False,
}  # fmt: skip
_MILLISECOND = 1e6


def distributions(rows: Sequence[Row]) -> str:
    """Plot every sample of every row as a point, the median as a bar, its 95 % interval behind it; milliseconds."""
    measured = [row for row in rows if row.measurement is not None]

    def draw(axes: Axes) -> None:
        for position, row in enumerate(reversed(measured)):
            if row.measurement is not None:
                low, high = (ns / _MILLISECOND for ns in row.measurement.interval_ns)
                samples = row.measurement.samples_ns / _MILLISECOND
                axes.barh(position, high - low, left=low, height=0.6, color=_COLOURS[5], alpha=0.35, linewidth=0)
                offsets = [position + 0.18 * ((i % 5) - 2) / 2 for i in range(samples.size)]
                axes.plot(samples, offsets, ".", color=_COLOURS[1], alpha=0.8, markersize=5, linestyle="none")
                median = row.measurement.median_ns / _MILLISECOND
                axes.plot([median, median], [position - 0.34, position + 0.34], color=_INK, linewidth=2)
        axes.set_yticks(range(len(measured)), [row.key.case for row in reversed(measured)])
        axes.set_xlabel("milliseconds per run: samples, median, 95 % interval")
        axes.set_xlim(left=0)

    return _svg(draw, height_in=0.8 + 0.42 * len(measured), salt="distributions")


def batch_scaling(rows: Sequence[Row]) -> str:
    """Plot images per second over the batch, a line per case; empty unless a case was measured at several batches."""
    by_case: dict[str, list[Row]] = defaultdict(list)
    for row in rows:
        if row.measurement is not None:
            by_case[row.key.case].append(row)
    lines = {case: sorted(found, key=lambda row: row.batch) for case, found in by_case.items() if len(found) > 1}
    if not lines:
        return ""

    def draw(axes: Axes) -> None:
        for case, found in lines.items():
            axes.plot([row.batch for row in found], [row.images_per_s or 0 for row in found], "o-", label=case)
        batches = sorted({row.batch for found in lines.values() for row in found})
        axes.set_xscale("log", base=2)
        axes.set_xticks(batches, [str(batch) for batch in batches])
        axes.set_xlabel("batch")
        axes.set_ylabel("images per second")
        axes.set_ylim(bottom=0)
        axes.legend(fontsize=9, ncols=2)

    return _svg(draw, height_in=4.0, salt="scaling")


def roofline(report: BenchReport, rows: Sequence[Row]) -> str:
    """Plot multiply-adds per second over multiply-adds per byte: the ceilings, the rows, the slowest nodes."""
    ceilings = report.ceilings
    measured = [row for row in rows if row.measurement is not None and row.work.multiply_adds]
    if ceilings is None or not measured:
        return ""

    def draw(axes: Axes) -> None:
        edges = [1.0, 10_000.0]
        for name, rate in ceilings.multiply_adds_per_s.items():
            ridge = rate / ceilings.copied_bytes_per_s
            heights = [ceilings.copied_bytes_per_s * edges[0], rate, rate]
            axes.plot([edges[0], ridge, edges[1]], heights, color=_INK, lw=1.2)
            axes.text(edges[1], rate * 1.08, f"matrix product, {name}", ha="right", va="bottom", fontsize=9)
        profiled = [row for row in measured if row.nodes]
        if profiled:
            row = profiled[-1]
            nodes = [node for node in row.nodes if node.multiply_adds and node.time_ns]
            axes.plot(
                [node.multiply_adds / node.moved_bytes for node in nodes],
                [node.multiply_adds / node.time_ns * 1e9 for node in nodes],
                "o", color=_COLOURS[6], markersize=5, label=f"slowest nodes of {row.key.case}", linestyle="none",
            )  # fmt: skip
        for row, colour, marker in zip(measured, _COLOURS * len(measured), "sD^v<>P" * len(measured), strict=False):
            median = row.measurement.median_ns if row.measurement else 1.0
            x, y = row.work.multiply_adds / row.work.least_bytes, row.work.multiply_adds / median * 1e9
            axes.plot(x, y, marker, color=colour, markersize=7, label=row.key.case, linestyle="none", alpha=0.85)
        axes.set_xscale("log")
        axes.set_yscale("log")
        axes.set_xlabel("multiply-adds per byte that has to move")
        axes.set_ylabel("multiply-adds per second")
        axes.legend(fontsize=8, loc="lower right")

    return _svg(draw, height_in=4.6, salt="roofline")


def machines(reports: Sequence[BenchReport], names: Sequence[str], keys: Sequence[RowKey]) -> str:
    """Plot medians of the rows `keys`, a bar per report, whose name is in `names`; milliseconds."""

    def draw(axes: Axes) -> None:
        height = 0.8 / len(reports)
        for number, (report, name) in enumerate(zip(reports, names, strict=True)):
            found = {row.key: row.measurement for row in report.rows if row.measurement is not None}
            there = [(i, m.median_ns / _MILLISECOND) for i, key in enumerate(keys) if (m := found.get(key)) is not None]
            positions = [len(keys) - 1 - i + 0.4 - height * (number + 0.5) for i, _ in there]
            colour = _COLOURS[number % len(_COLOURS)]
            axes.barh(positions, [value for _, value in there], height=height * 0.9, label=name, color=colour)
        axes.set_yticks(range(len(keys)), [f"{key.network} {key.case}" for key in reversed(keys)])
        axes.set_xlabel("milliseconds per run")
        axes.legend(fontsize=9, loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2)

    return _svg(draw, height_in=1.0 + 0.5 * len(keys), salt="machines")


def _svg(draw: Callable[[Axes], None], *, height_in: float, salt: str) -> str:
    """Draw into a new figure and return its SVG element, without a fixed size and with unique ids."""
    with mpl.rc_context({**_STYLE, "svg.hashsalt": salt}):
        figure = Figure(figsize=(_WIDTH_IN, height_in), layout="constrained")
        figure.patch.set_alpha(0)
        axes: Any = figure.add_subplot()
        axes.patch.set_alpha(0)
        draw(axes)
        text = io.StringIO()
        figure.savefig(text, format="svg", metadata={"Date": None, "Creator": None})
    svg = text.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    return re.sub(r'(<svg [^>]*?)width="[^"]*" height="[^"]*"', r"\1", svg, count=1)
