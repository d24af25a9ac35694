"""`fcn-deploy bench`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import SourceCheckpoint, output_option, panel, parse_batches
from fcn_deploy.cli.reports import HtmlPage, Markdown, write_outputs

if TYPE_CHECKING:
    from benchmarks.report.results import BenchReport

_INTERRUPTED = 130
measurement_option = panel("Measurement")


def bench(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE", help="Bundle directories or ONNX files.", show_default=False)
    ],
    checkpoint: SourceCheckpoint = None,
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
    report: HtmlPage = None,
    markdown: Markdown = None,
    json: Annotated[Path | None, output_option(help="Write all raw samples, for `compare` and `report`.")] = None,
) -> None:
    """Measure latency beside PyTorch, the unmodified graph, and other runtimes.

    Each row runs in its own process, and its output is compared with PyTorch's first.

    Exit code 5: a row computes something else.
    6: a row is unstable, or none could be measured.
    130: interrupted; what was measured is reported.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.render import bench_progress, print_report
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
        protocol=fd.Protocol(duration_s=duration),
        threads=threads,
        checkpoint=checkpoint,
        command=("fcn-deploy", *sys.argv[1:]),
    )
    with bench_progress() as update:
        found = fd.bench(bundles, options, update)
    print_report(found)
    write_outputs([found], report, markdown, json)
    _require_reliable(found)


def _require_reliable(report: "BenchReport") -> None:
    """Do nothing if every row was measured reliably.

    Raises:
        typer.Exit: the run was interrupted.
        ParityError: a row computes something else than the network.
        MeasurementError: a row is unstable, or none was measured.
    """
    import fcn_deploy as fd
    from benchmarks.report.results import RowStatus

    if report.interrupted:
        raise typer.Exit(_INTERRUPTED)
    wrong = [f"{row.key}: {row.problem}" for row in report.rows if row.status is RowStatus.WRONG]
    if wrong:
        raise fd.ParityError("; ".join(wrong), remedy="Run `fcn-deploy verify --exact` to see which side is off.")
    measured = [(row.key.case, row.measurement.stable) for row in report.rows if row.measurement is not None]
    if not measured:
        raise fd.MeasurementError("no row could be measured", remedy="See the remarks above for the reasons.")
    unstable = [case for case, stable in measured if not stable]
    if unstable:
        raise fd.MeasurementError(
            f"{len(unstable)} of {len(measured)} rows are unstable: {', '.join(unstable)}",
            remedy="All files were written. Stop other programs, or pass a longer --duration.",
        )
