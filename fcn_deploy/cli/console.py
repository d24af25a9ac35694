"""What a command prints: results to stdout; steps, progress and errors to stderr; with --json one document on stdout.

No value is cut: output to a file or pipe is as wide as it needs to be, and a table that is wider than the terminal is
printed row by row.
"""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
)
from rich.table import Column, Table
from rich.text import Text

import fcn_deploy as fd
from fcn_deploy.errors import FcnDeployError
from fcn_deploy.progress import Advance

if TYPE_CHECKING:
    from exporters.tensorrt.build import Phase

_UNLIMITED = 100_000
_GAP = 2
# Control characters, those that change the direction of text, and halves of surrogate pairs.
_STEERING = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def _console(*, stderr: bool) -> Console:
    console = Console(stderr=stderr, emoji=False)
    if not console.is_terminal:
        console.width = _UNLIMITED
    return console


out = _console(stderr=False)
err = _console(stderr=True)


def printable(text: str) -> str:
    r"""Return text with every character that steers a terminal, or that it cannot show, as `\x1b` or `\udcff`.

    Class names, names in checkpoints and file names come from others, and may contain any of them.
    """
    return _STEERING.sub(lambda found: found.group().encode("unicode_escape").decode(), text)


def print_line(text: str, *, to_stderr: bool = False) -> None:
    """Print one line of Rich markup, never wrapped, so that programs can read it too."""
    (err if to_stderr else out).print(printable(text), highlight=False, soft_wrap=True)


def print_json(document: Any) -> None:
    """Print one JSON document on stdout at once."""
    print(json.dumps(document, indent=2, allow_nan=False), flush=True)  # noqa: T201 - Rich would wrap and colour it


def print_result(result: Any, show: Callable[[Any], None], *, as_json: bool) -> None:
    """Print a result as JSON, or the way `show` prints it."""
    if as_json:
        print_json(result.to_dict())
    else:
        show(result)


def print_error(error: FcnDeployError) -> None:
    """Print the problem, its items on indented lines, then the remedy."""
    problem, *items = error.problem.split("\n  ")
    print_line(f"[bold red]error:[/] {escape(problem)}", to_stderr=True)
    for item in items:
        print_line(f"  {escape(item)}", to_stderr=True)
    print_line(escape(error.remedy), to_stderr=True)


def print_untrained(what: str = "labels") -> None:
    """Warn that the weights are random."""
    print_line(f"untrained weights: the {what} mean nothing", to_stderr=True)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[str | Text]], texts: int = 1) -> None:
    """Print a table, or one line per row where the terminal is too narrow for it.

    Args:
        title: the line above it.
        columns: the column names; a name wider than its figures is split into several lines.
        rows: a cell per column, plain text without markup; an empty row is a rule.
        texts: how many of the first columns are text; the others are figures, aligned right.
    """
    if title:
        print_line(f"[bold]{escape(title)}[/]")
    full = [row for row in rows if row]
    widths = [max(map(_width, column)) for column in zip(columns, *full, strict=True)]
    if sum(widths) + _GAP * (len(widths) - 1) <= out.width:
        out.print("", make_table(columns, rows, texts), "", sep="\n")
        return
    names = [name.replace("\n", "") for name in columns[1:]]
    for first, *others in full:
        values = ", ".join(f"{name} {cell}" for name, cell in zip(names, others, strict=True) if str(cell))
        out.print(Text(printable(f"{first}: {values}")), overflow="fold")


def _width(cell: str | Text) -> int:
    return max(cell_len(line) for line in str(cell).split("\n"))


def make_table(columns: Sequence[str], rows: Iterable[Sequence[str | Text]], texts: int = 1) -> Table:
    """Return a table with a rule below its header; long cells are folded."""
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False, padding=(0, 1, 0, 0), header_style="dim")
    for index, name in enumerate(columns):
        table.add_column(name, justify="left" if index < texts else "right", overflow="fold")
    for row in rows:
        if row:
            table.add_row(*(Text(printable(cell)) if isinstance(cell, str) else cell for cell in row))
        else:
            table.add_section()
    return table


@contextlib.contextmanager
def show_step(name: str, parts: int = 1) -> Iterator[Advance]:
    """Show a step and its progress on stderr, then how long it took."""
    start = time.perf_counter()
    columns = folding("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with _progress(*(columns if parts > 1 else (SpinnerColumn(), columns[0]))) as progress:
        task = progress.add_task(escape(printable(name)), total=parts)
        yield lambda: progress.advance(task)
    print_line(f"[green]done[/] {time.perf_counter() - start:5.1f} s  {escape(name)}", to_stderr=True)


def counted(
    predictions: "Iterator[fd.Prediction]", summary: "fd.PredictionSummary", total: int
) -> "Iterator[fd.Prediction]":
    """Yield the predictions; a progress bar shows their number and rate."""
    rate = TextColumn("{task.fields[rate]:.3g} images/s")
    with _progress(TextColumn("segment"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn()) as progress:
        task = progress.add_task("", total=total, rate=0.0)
        for prediction in summary.counting(predictions):
            progress.update(task, advance=1, rate=summary.images_per_s)
            yield prediction


class PhaseBars:
    """Progress bars for the phases of a TensorRT build, on a terminal."""

    def __init__(self) -> None:
        self.progress = _progress(folding("  {task.description}"), BarColumn(), MofNCompleteColumn())
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, phases: "tuple[Phase, ...]") -> None:
        """Show the current phases of the build."""
        for name in self._tasks.keys() - {phase.name for phase in phases}:
            self.progress.remove_task(self._tasks.pop(name))
        for phase in phases:
            if phase.name not in self._tasks:
                self._tasks[phase.name] = self.progress.add_task(escape(phase.name), total=phase.steps)
            self.progress.update(self._tasks[phase.name], completed=phase.done)


def folding(text: str) -> TextColumn:
    """Return a progress column whose text wraps, where Rich would cut it."""
    return TextColumn(text, table_column=Column(overflow="fold"))


def _progress(*columns: Any) -> Progress:
    return Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
