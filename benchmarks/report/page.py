"""Reports for readers: Markdown, and one self-contained HTML page."""

from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from benchmarks.report import table
from benchmarks.report.results import BenchReport, Row, RowKey, WorkEstimate
from fcn_deploy.installation import require_extra
from fcn_deploy.storage import staged_file

_TEMPLATES = Path(__file__).parent / "templates"
_TEMPLATE = "report.html.jinja"


def require_page() -> None:
    """Check that pages can be made, without loading the packages that make them.

    Raises:
        UsageError: a package is missing; names the extra that installs it.
    """
    require_extra("a page", "report", ("matplotlib", "jinja2"))


def write_page(reports: Sequence[BenchReport], path: Path) -> None:
    """Write one HTML page about one or several reports, with its plots inside; it fetches nothing.

    Raises:
        UsageError: a package that makes pages is missing.
        OutputError: it cannot be written.
    """
    require_page()
    text = page(reports)
    with staged_file(path) as staging:
        staging.write_text(text, encoding="utf-8")


def write_markdown(reports: Sequence[BenchReport], path: Path) -> None:
    """Write the reports as Markdown.

    Raises:
        OutputError: it cannot be written.
    """
    with staged_file(path) as staging:
        staging.write_text("\n".join(markdown(report) for report in reports), encoding="utf-8")


def markdown(report: BenchReport) -> str:
    """Return a report as Markdown: summary, a table per network and shape, remarks, machine."""
    doubts = table.doubts(report)
    top = [*table.summary(report), *([doubts] if doubts else [])]
    lines = [f"# Benchmark: {report.machine}", "", *(f"{sentence}  " for sentence in top), ""]
    for title, rows in table.groups(report):
        lines += [f"## {title}", "", *markdown_table(report, rows), ""]
        phases = table.phases(rows)
        lines += ["Parts of a run, medians:", "", *(f"- {line}" for line in phases), ""] if phases else []
    remarks = table.remarks(report)
    lines += ["## Remarks", "", *(f"- {remark}" for remark in remarks), ""] if remarks else []
    lines += ["## Where it was measured", "", *(f"- {name}: {value}" for name, value in facts(report))]
    return "\n".join(lines) + "\n"


def markdown_table(report: BenchReport, rows: Sequence[Row]) -> list[str]:
    """Return the lines of one table."""
    baseline = table.baseline_of(rows)
    body = (table.cells(report, row, baseline) for row in rows)
    return table.markdown_lines(table.COLUMNS, body)


def facts(report: BenchReport) -> list[tuple[str, str]]:
    """Return the machine, its ceilings, its state and the software as pairs of name and text."""
    e = report.environment
    found = [("date", _date(report)), ("processor", f"{e['cpu']}, {e['cores']} cores used"), ("system", e["system"])]
    found += [("GPU", _gpu(gpu)) for gpu in e.get("gpus", [])]
    found += [("GPU while rows ran", _gpu_during(gpu)) for gpu in e.get("gpus_during", [])]
    if report.ceilings is not None:
        products = ", ".join(f"{n} {rate / 1e9:,.0f} G" for n, rate in report.ceilings.multiply_adds_per_s.items())
        found += [("largest copy", f"{report.ceilings.copied_bytes_per_s / 1e9:,.1f} GB/s read and written")]
        found += [("highest rate", f"{products} multiply-adds per second")]
    p = report.protocol
    found += [("samples", f"{p['duration_s']:g} s a row in {p['rounds']} rounds, rows taking turns")]
    found += [("timing itself", f"{e['clock_overhead_ns']:.0f} ns a sample")]
    busy = e.get("busy_cores_before")
    found += [("other work before", f"{busy:.2f} cores")] if busy is not None else []
    found += [("versions", ", ".join(f"{name} {version}" for name, version in e["versions"].items()))]
    found += [("commit", e["commit"])] if e.get("commit") else []
    return [*found, ("command", " ".join(e["command"]))] if e["command"] else found


def page(reports: Sequence[BenchReport]) -> str:
    """Return the HTML of the page."""
    import jinja2

    from benchmarks.report import plots

    loader = jinja2.FileSystemLoader(_TEMPLATES)
    template = jinja2.Environment(loader=loader, autoescape=True).get_template(_TEMPLATE)
    networks = sorted({row.key.network for report in reports for row in report.rows})
    return template.render(
        title=f"Latency of {', '.join(networks)}",
        reports=reports,
        names=[f"{report.machine}, {_date(report)}" for report in reports],
        shared=_shared(reports),
        side_by_side=side_by_side(reports),
        table=table,
        plots=plots,
        facts=facts,
        node_rows=node_rows,
        share_of_slowest=share_of_slowest,
    )


def share_of_slowest(row: Row, rows: Sequence[Row]) -> float:
    """Return a row's median over the largest one of `rows`, in percent, for the length of its bar; 0 without one."""
    slowest = max((one.measurement.median_ns for one in rows if one.measurement is not None), default=0.0)
    return row.measurement.median_ns / slowest * 100 if row.measurement is not None else 0.0


def side_by_side(reports: Sequence[BenchReport]) -> list[tuple[str, ...]]:
    """Return the medians of every row that the first report shares with another, one column per report."""
    found = [{row.key: row.measurement for row in report.rows} for report in reports]
    return [
        (str(key), *(table.duration(m.median_ns) if (m := other.get(key)) else table.NOTHING for other in found))
        for key in _shared(reports)
    ]


def _shared(reports: Sequence[BenchReport]) -> list[RowKey]:
    first, *others = ({row.key for row in report.rows if row.measurement is not None} for report in reports)
    return [row.key for row in reports[0].rows if row.key in first and any(row.key in other for other in others)]


def _date(report: BenchReport) -> str:
    return datetime.fromisoformat(report.environment["date"]).strftime("%Y-%m-%d %H:%M UTC")


def node_rows(report: BenchReport, row: Row) -> list[tuple[str, ...]]:
    """Return the slowest nodes as texts: name, operator, time, share of the run, multiply-adds, limit over time."""
    total = row.measurement.median_ns if row.measurement else float("nan")
    found: list[tuple[str, ...]] = []
    for node in row.nodes:
        limit = None
        if report.ceilings is not None:
            limit = report.ceilings.limit_ns(WorkEstimate(node.multiply_adds, node.moved_bytes, 0), row.precision)
        work = f"{node.multiply_adds / 1e9:.2f} G" if node.multiply_adds else table.NOTHING
        share = f"{limit / node.time_ns:.0%}" if limit and node.time_ns else table.NOTHING
        time = table.duration(node.time_ns)
        found.append((node.name, node.operator, time, f"{node.time_ns / total:.1%}", work, share))
    return found


def _gpu(gpu: dict[str, Any]) -> str:
    parts = [gpu["name"], f"driver {gpu['driver']}"]
    parts += [f"{gpu['memory_bytes'] / 1e9:.0f} GB"] if "memory_bytes" in gpu else []
    parts += [f"power limit {gpu['power_limit_w']:.0f} W"] if "power_limit_w" in gpu else []
    return ", ".join(parts)


def _gpu_during(gpu: dict[str, Any]) -> str:
    units = {"sm_mhz": "MHz SM clock", "memory_mhz": "MHz memory clock", "power_w": "W"}
    parts = [f"{gpu[name][0]:.0f} to {gpu[name][1]:.0f} {unit}" for name, unit in units.items() if name in gpu]
    return ", ".join([*parts, f"throttled: {', '.join(gpu['throttled_by']) or 'never'}"])
