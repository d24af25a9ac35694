"""Where words go: steps and errors to stderr, results to stdout, and nothing but one document with --json."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from fcn_deploy.errors import FcnDeployError
from fcn_deploy.progress import Advance

out = Console()
err = Console(stderr=True)


@contextlib.contextmanager
def show_step(name: str, parts: int = 1) -> Iterator[Advance]:
    """Say on stderr what is being done, how far it is when it has parts, and how long it took once it is done."""
    start = time.perf_counter()
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    shown = columns if parts > 1 else (SpinnerColumn(), columns[0])
    with Progress(*shown, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task(escape(name), total=parts)
        yield lambda: progress.advance(task)
    print_line(f"[green]done[/] {time.perf_counter() - start:5.1f} s  {escape(name)}", to_stderr=True)


def show_error(error: FcnDeployError) -> None:
    """The problem, then the remedy."""
    print_line(f"[bold red]error:[/] {escape(error.problem)}", to_stderr=True)
    print_line(escape(error.remedy), to_stderr=True)


def print_json(document: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(document, indent=2, allow_nan=False))  # noqa: T201 - Rich would wrap and colour it


def print_line(text: str, *, to_stderr: bool = False) -> None:
    """One line of Rich markup, never wrapped, so that it can be read by a program too."""
    (err if to_stderr else out).print(text, highlight=False, soft_wrap=True)


def plain_table(title: str, *columns: str) -> Table:
    """A table whose first column is text and whose others are right-aligned figures."""
    table = Table(
        title=title, title_justify="left", title_style="bold", header_style="dim", box=box.SIMPLE_HEAD, pad_edge=False
    )
    table.add_column(columns[0], no_wrap=True)
    for column in columns[1:]:
        table.add_column(column, justify="right", no_wrap=True)
    return table
