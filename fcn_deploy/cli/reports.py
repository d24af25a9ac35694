"""`fcn-deploy compare` and `fcn-deploy report`: what reads the reports that `bench --json` wrote."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.cli.parameters import Json, output_option

if TYPE_CHECKING:
    from benchmarks.report.results import BenchReport
    from fcn_deploy.errors import OutputError

HtmlPage = Annotated[Path | None, output_option("--report", help="Write an HTML page with plots.")]
Markdown = Annotated[Path | None, output_option(help="Write tables in Markdown.")]


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
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json

    found = fd.compare_reports(fd.read_report(before), fd.read_report(after), threshold)
    if json:
        print_json(found.to_dict())
    else:
        from fcn_deploy.cli.render import print_comparison

        print_comparison(found)
    found.require_no_regression()


def report(
    files: Annotated[list[Path], typer.Argument(metavar="A.json", help="Reports that `bench --json` wrote.")],
    page: HtmlPage = None,
    markdown: Markdown = None,
) -> None:
    """Show saved benchmark reports; several also side by side."""
    import fcn_deploy as fd
    from fcn_deploy.cli.render import print_report, print_side_by_side

    if page is not None:
        fd.require_page()
    reports = [fd.read_report(path) for path in files]
    for one in reports:
        print_report(one)
    if len(reports) > 1:
        print_side_by_side(reports)
    write_outputs(reports, page, markdown, None)


def write_outputs(
    reports: "Sequence[BenchReport]", page: Path | None, markdown: Path | None, json: Path | None
) -> None:
    """Write the requested files, raw figures first; none if nothing was measured.

    Raises:
        OutputError: a file cannot be written; the others are written all the same.
    """
    from rich.markup import escape

    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_line

    targets: tuple[tuple[Path | None, Callable[[Path], None]], ...] = (
        (json, lambda path: fd.write_report(reports[0], path)),
        (markdown, lambda path: fd.write_markdown(reports, path)),
        (page, lambda path: fd.write_page(reports, path)),
    )
    if not any(row.measurement for report in reports for row in report.rows):
        return
    failure: OutputError | None = None
    for path, write in targets:
        if path is not None:
            try:
                write(path)
                print_line(f"wrote {escape(str(path))}")
            except fd.OutputError as error:
                failure = failure or error
    if failure is not None:
        raise failure
