"""Where words go: steps and errors to stderr, results to stdout, and nothing but one document with --json."""

import contextlib
import json
import time
from collections.abc import Iterator
from typing import Any

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.status import Status
from rich.table import Table

from fcn_deploy.errors import FcnDeployError

out = Console()
err = Console(stderr=True)


@contextlib.contextmanager
def show_step(name: str) -> Iterator[Status | None]:
    """Say on stderr what is being done, and how long it took once it is; gives the line to update on a terminal."""
    start = time.perf_counter()
    with err.status(escape(name)) if err.is_terminal else contextlib.nullcontext() as status:
        yield status
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
