"""The commands that measure latency and read reports: `fcn-deploy bench`, `compare` and `report`."""

import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated

import typer

import fcn_deploy as fd
from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import (
    Json,
    ModuleChanged,
    SourceCheckpoint,
    SourceModule,
    output_option,
    panel,
    parse_batches,
)

measurement_option = panel("Measurement")
HtmlPage = Annotated[Path | None, output_option("--report", help="Write an HTML page with plots.")]
Markdown = Annotated[Path | None, output_option(help="Write tables in Markdown.")]
_INTERRUPTED = 130


def bench(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE", help="Bundle directories or ONNX files.", show_default=False)
    ],
    checkpoint: SourceCheckpoint = None,
    module: SourceModule = None,
    module_changed: ModuleChanged = False,
    batch: Annotated[
        str, typer.Option(help="Only bundles of these batch sizes, e.g. 1,4. Default: all.", metavar="N,N")
    ] = "",
    rows: Annotated[
        str,
        typer.Option(
            help="Names of rows, separated by commas; a wrong name lists them. Default: all.", metavar="NAME,NAME"
        ),
    ] = "",
    provider: Annotated[Provider, measurement_option(help="Where to run.")] = Provider.CPU,
    duration: Annotated[float, measurement_option(help="Seconds of samples per row.")] = 10.0,
    threads: Annotated[int | None, measurement_option(help="CPU cores per row. Default: all.")] = None,
    strict: Annotated[
        bool, measurement_option("--strict", help="Exit with code 6 if a row is unstable, e.g. in CI.")
    ] = False,
    report: HtmlPage = None,
    markdown: Markdown = None,
    json: Annotated[Path | None, output_option(help="Write all raw samples, for `compare` and `report`.")] = None,
) -> None:
    """Measure latency beside PyTorch, the unmodified graph, and other runtimes.

    Each row runs in its own process, and its output is compared with PyTorch's first.

    Exit code 5: a row computes something else.
    6: no row could be measured, or with --strict: a row is unstable.
    130: interrupted; what was measured is reported.
    """
    from fcn_deploy.cli import render
    from fcn_deploy.storage import check_writable

    if report is not None:
        fd.require_page()
    for path in (report, markdown, json):
        if path is not None:
            check_writable(path)
    options = fd.BenchOptions(
        provider=provider,
        rows=tuple(name.strip() for name in rows.split(",") if name.strip()),
        batches=parse_batches(batch),
        protocol=fd.Protocol.of_duration(duration),
        threads=threads,
        rebuild=fd.RebuildOptions(checkpoint, module, module_changed),
        command=("fcn-deploy", *sys.argv[1:]),
    )
    with render.bench_progress() as update:
        found = fd.bench(bundles, options, update)
    render.print_report(found)
    write_outputs([found], report, markdown, json)
    _require_reliable(found, strict=strict)


def _require_reliable(report: "fd.BenchReport", *, strict: bool) -> None:
    """Do nothing if rows were measured and none is wrong; if `strict`, unstable ones are refused too.

    Raises:
        typer.Exit: the run was interrupted.
        ParityError: a row computes something else than the network.
        MeasurementError: no row was measured, or one is unstable.
    """
    from benchmarks.report.results import RowStatus

    if report.interrupted:
        raise typer.Exit(_INTERRUPTED)
    wrong = [f"{row.key}: {row.problem}" for row in report.rows if row.status is RowStatus.WRONG]
    if wrong:
        raise fd.ParityError("; ".join(wrong), remedy="Run `fcn-deploy verify --exact` to see which side is off.")
    measured = [(row.key.case, row.measurement.stable) for row in report.rows if row.measurement is not None]
    if not measured:
        raise fd.MeasurementError("no row could be measured", remedy="See the reasons above.")
    unstable = [case for case, stable in measured if not stable]
    if unstable and strict:
        raise fd.MeasurementError(
            f"{len(unstable)} of {len(measured)} rows are unstable: {', '.join(unstable)}",
            remedy="All files were written. Stop other programs, or pass a longer --duration.",
        )


def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The baseline, from `bench --json`.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="The report to judge.")],
    threshold: Annotated[float, typer.Option(help="Smallest difference of medians that counts, as a fraction.")] = 0.02,
    json: Json = False,
) -> None:
    """Compare two benchmark reports row by row: faster, slower, or no difference.

    A difference counts when the 95 % interval of the ratio excludes 1 and the
    medians differ by more than the threshold.

    Exit code 7: a row became slower, or is missing.
    6: rows are too unstable to tell.
    """
    from fcn_deploy.cli import console, render

    found = fd.compare_reports(fd.read_report(before), fd.read_report(after), threshold)
    console.print_result(found, render.print_comparison, as_json=json)
    found.require_no_regression()


def report(
    files: Annotated[list[Path], typer.Argument(metavar="A.json", help="Reports that `bench --json` wrote.")],
    page: HtmlPage = None,
    markdown: Markdown = None,
) -> None:
    """Show saved benchmark reports; several also side by side."""
    from fcn_deploy.cli import render

    if page is not None:
        fd.require_page()
    reports = [fd.read_report(path) for path in files]
    for one in reports:
        render.print_report(one)
    if len(reports) > 1:
        render.print_side_by_side(reports)
    write_outputs(reports, page, markdown, None)


def write_outputs(
    reports: "Sequence[fd.BenchReport]", page: Path | None, markdown: Path | None, json: Path | None
) -> None:
    """Write the requested files, raw figures first; none if nothing was measured.

    Raises:
        OutputError: a file cannot be written; the others are written all the same.
    """
    from rich.markup import escape

    from fcn_deploy.cli import console

    targets: tuple[tuple[Path | None, Callable[[Path], None]], ...] = (
        (json, lambda path: fd.write_report(reports[0], path)),
        (markdown, lambda path: fd.write_markdown(reports, path)),
        (page, lambda path: fd.write_page(reports, path)),
    )
    if not any(row.measurement for report in reports for row in report.rows):
        return
    failure: fd.OutputError | None = None
    for path, write in targets:
        if path is not None:
            try:
                write(path)
                console.print_line(f"wrote {escape(str(path))}")
            except fd.OutputError as error:
                failure = failure or error
    if failure is not None:
        raise failure
