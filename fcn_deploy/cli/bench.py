"""`fcn-deploy bench`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import MadeFrom, parse_batches

if TYPE_CHECKING:
    from benchmarks.report.results import BenchReport

EPILOG = "Example: fcn-deploy bench fcn8s --report latency.html"


def bench(
    bundles: Annotated[
        list[Path], typer.Argument(metavar="BUNDLE...", help="Bundles' directories, or ONNX files.", show_default=False)
    ],
    provider: Annotated[Provider, typer.Option(help="Where the rows run.")] = Provider.CPU,
    rows: Annotated[
        str,
        typer.Option(
            help="Rows by name, separated by commas; a wrong name lists them. Default: all.", show_default=False
        ),
    ] = "",
    batch: Annotated[
        str,
        typer.Option(help="Only bundles of these batches, e.g. 1,4. Default: all bundles given.", show_default=False),
    ] = "",
    duration: Annotated[float, typer.Option(help="Seconds of samples per row.")] = 10.0,
    threads: Annotated[
        int | None, typer.Option(help="Cores for every row. Default: all there are.", show_default=False)
    ] = None,
    checkpoint: MadeFrom = None,
    report: Annotated[
        Path | None, typer.Option(help="Write one page (HTML) with plots to this file.", show_default=False)
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown to this file.", show_default=False)] = None,
    json: Annotated[
        Path | None, typer.Option(help="Write raw samples and all to this file, for compare and report.")
    ] = None,
) -> None:
    """Measure an artifact's latency beside PyTorch, the plain graph, and other runtimes.

    Each row has a process of its own and is compared with PyTorch first.

    Exit code 5: a row computes something else.
    6: a row is unstable, or none could be measured.
    130: interrupted; what was measured is reported.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.render import LiveTable, leave, show_report, write_outputs
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
    with LiveTable() as table:
        found: BenchReport = fd.bench(bundles, options, table.update)
    show_report(found)
    write_outputs([found], report, markdown, json)
    leave(found)
