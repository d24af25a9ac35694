"""`fcn-deploy compare`."""

from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.cli.parameters import Json

if TYPE_CHECKING:
    from benchmarks.stats.comparison import ReportComparison

EPILOG = "Example: fcn-deploy compare before.json after.json --threshold 0.03"
_COLOURS = {"faster": "green", "slower": "bold red", "no difference": "dim"}


def compare(
    before: Annotated[Path, typer.Argument(metavar="A.json", help="The baseline, from `bench --json`.")],
    after: Annotated[Path, typer.Argument(metavar="B.json", help="What is judged.")],
    threshold: Annotated[float, typer.Option(help="Smallest difference of medians that counts, as a share.")] = 0.02,
    json: Json = False,
) -> None:
    """Say of every row whether it became faster, slower, or neither.

    A difference counts when the ratio's 95 % interval leaves 1 out and the
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
        _show(found)
    found.require_no_regression()


def _show(found: "ReportComparison") -> None:
    from rich.markup import escape

    from benchmarks.report import table
    from fcn_deploy.cli.console import out, plain_table, print_line

    for title, changes in groupby(found.changes, key=lambda change: table.title_of(change.key)):
        shown = plain_table(title, "row", "before", "after", "time ratio", "verdict", "note")
        for change in changes:
            ratio, verdict = change.ratio, f"[{_COLOURS[change.verdict]}]{change.verdict}[/]"
            figures = f"{ratio.value:.3f} ± {(ratio.high - ratio.low) / 2:.3f}"
            medians = (table.duration(side.median_ns) for side in (change.before, change.after))
            shown.add_row(escape(change.key.case), *medians, figures, verdict, "" if change.stable else "unstable")
        out.print(shown)
    if found.machines[0] != found.machines[1]:
        print_line(f"[yellow]different machines:[/] {escape(' and '.join(found.machines))}")
    for key in found.gained:
        print_line(f"only in the second: {escape(str(key))}")
