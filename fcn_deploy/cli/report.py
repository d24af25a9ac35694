"""`fcn-deploy report`."""

from pathlib import Path
from typing import Annotated

import typer

EPILOG = "Example: fcn-deploy report desktop.json server.json --report both.html"


def report(
    files: Annotated[list[Path], typer.Argument(metavar="A.json...", help="What `bench --json` wrote.")],
    page: Annotated[
        Path | None, typer.Option("--report", help="Write one page (HTML) with plots to this file.", show_default=False)
    ] = None,
    markdown: Annotated[Path | None, typer.Option(help="Write Markdown to this file.", show_default=False)] = None,
) -> None:
    """Show benchmark reports again; of several, the medians of their common rows side by side as well."""
    import fcn_deploy as fd
    from fcn_deploy.cli.render import show_report, show_side_by_side, write_outputs

    if page is not None:
        fd.require_page()
    reports = [fd.read_report(path) for path in files]
    for one in reports:
        show_report(one)
    if len(reports) > 1:
        show_side_by_side(reports)
    write_outputs(reports, page, markdown, None)
