"""What `bench`, `compare` and `report` share: tables of a report, the files they write, the exit code."""

from collections.abc import Callable, Sequence
from pathlib import Path

import typer
from rich.markup import escape

from benchmarks import table
from benchmarks.report import side_by_side, write_markdown, write_page
from benchmarks.results import BenchReport, Row, Status, write_report
from benchmarks.summary import sentences
from fcn_deploy.cli.console import out, plain_table, print_line
from fcn_deploy.cli.parity_table import placed
from fcn_deploy.errors import MeasurementError, OutputError, ParityError

_INTERRUPTED = 130


def show_report(report: BenchReport) -> None:
    """A table per network and shape, remarks, and what it all means."""
    for title, rows in table.groups(report):
        shown = plain_table(f"{title} on {report.machine}", *table.NARROW)
        baseline = table.baseline_of(rows)
        for row in rows:
            shown.add_row(*(escape(cell) for cell in table.narrow_cells(report, row, baseline)))
        out.print(shown)
        print_line("\n".join(escape(line) for line in _placements(rows)))
    for remark in table.remarks(report):
        print_line(f"[yellow]{escape(remark)}[/]")
    for sentence in sentences(report):
        print_line(escape(sentence))


def show_side_by_side(reports: Sequence[BenchReport]) -> None:
    """Medians of the rows that the first report shares with others."""
    shown = plain_table("side by side", "row", *(report.machine for report in reports))
    for cells in side_by_side(reports):
        shown.add_row(*(escape(cell) for cell in cells))
    out.print(shown)


def write_outputs(reports: Sequence[BenchReport], page: Path | None, markdown: Path | None, json: Path | None) -> None:
    """Write what was asked for, the raw figures first; nothing where nothing was measured.

    Raises:
        OutputError: a file cannot be written; the others are all the same.
    """
    targets: tuple[tuple[Path | None, Callable[[Path], None]], ...] = (
        (json, lambda path: write_report(reports[0], path)),
        (markdown, lambda path: write_markdown(reports, path)),
        (page, lambda path: write_page(reports, path)),
    )
    if not any(row.measurement for report in reports for row in report.rows):
        return
    failure: OutputError | None = None
    for path, write in targets:
        if path is not None:
            try:
                write(path)
                print_line(f"wrote {escape(str(path))}")
            except OutputError as error:
                failure = failure or error
    if failure is not None:
        raise failure


def leave(report: BenchReport) -> None:
    """End with the code of the worst that happened.

    Raises:
        ParityError: a row computes something else than the network.
        MeasurementError: a row is unstable, or none was measured.
    """
    if report.interrupted:
        raise typer.Exit(_INTERRUPTED)
    wrong = [f"{row.key}: {row.problem}" for row in report.rows if row.status is Status.WRONG]
    if wrong:
        raise ParityError("; ".join(wrong), remedy="Run `fcn-deploy verify --exact` to see which side is off.")
    measured = [row for row in report.rows if row.measurement is not None]
    if not measured:
        raise MeasurementError("no row could be measured", remedy="The remarks above say why.")
    unstable = [row.key.case for row in measured if row.measurement is not None and not row.measurement.stable]
    if unstable:
        raise MeasurementError(
            f"{len(unstable)} of {len(measured)} rows are unstable: {', '.join(unstable)}",
            remedy="Everything was written. Close what else runs, or pass a longer --duration.",
        )


def _placements(rows: Sequence[Row]) -> list[str]:
    """Where the session says its nodes run; rows that agree share a line."""
    cases: dict[str, list[str]] = {}
    for row in rows:
        if row.placement:
            cases.setdefault(placed(row.placement), []).append(row.key.case)
    return [f"{where} ({', '.join(names)})" for where, names in cases.items()]
