"""A benchmark's rows while they are measured: a live table on a terminal, a line per step elsewhere."""

import time
from types import TracebackType
from typing import Self

from rich.console import Group
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Table

from benchmarks.options import Progress as BenchProgress
from benchmarks.results import Row
from benchmarks.table import computes, duration
from fcn_deploy.cli.console import err, plain_table, print_line


class LiveTable:
    """Shows a benchmark's progress on stderr, for as long as the block lasts."""

    def __init__(self) -> None:
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
        )
        self._bar = Progress(*columns, console=err)
        self._task = self._bar.add_task("", total=1.0, left="")
        self._live = Live(self._bar, console=err, transient=True) if err.is_terminal else None
        self._start = time.monotonic()
        self._step = ""

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, progress: BenchProgress) -> None:
        """Show what is being done, every row's latest figure, and the time left as far as it is known."""
        if self._live is None:
            self._say(progress.step.partition(":")[0])
            return
        elapsed, left = time.monotonic() - self._start, progress.remaining_s
        done = 0.0 if left is None else elapsed / (elapsed + left)
        text = "" if left is None else f"about {left:.0f} s left"
        self._bar.update(self._task, description=escape(progress.step), completed=done, left=text)
        self._live.update(Group(_table(progress.rows), self._bar))

    def _say(self, step: str) -> None:
        """A round is one line, however many rows take part in it."""
        if step != self._step:
            self._step = step
            print_line(f"{time.monotonic() - self._start:6.1f} s  {escape(step)}", to_stderr=True)


def _table(rows: tuple[Row, ...]) -> Table:
    table = plain_table("", "row", "computes", "samples", "median")
    for row in rows:
        measured = row.measurement
        figures = (str(measured.samples_ns.size), duration(measured.median_ns)) if measured else ("", str(row.status))
        table.add_row(escape(row.key.case), escape(computes(row)), *figures)
    return table
