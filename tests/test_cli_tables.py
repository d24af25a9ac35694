"""Tables on terminals of several widths and in pipes: no value is ever cut."""

import os
import pty
import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report.results import write_report
from tests.benchmarks.reports import report, row
from tests.conftest import Run

# Names that are not repeated row by row: those of first columns, and of the note that no row of this report has.
NOT_REPEATED = {"layer", "input", "row", "note"}
STYLES = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


def on_terminal(arguments: tuple[object, ...], directory: Path, width: int) -> str:
    """What a command shows on a terminal so many columns wide, without colours and line breaks."""
    command = [sys.executable, "-m", "fcn_deploy", *map(str, arguments)]
    environment = {**os.environ, "COLUMNS": str(width), "TERM": "xterm"}
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        command, cwd=directory, env=environment, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL
    ) as process:
        os.close(theirs)
        shown = b""
        while chunk := read(ours):
            shown += chunk
        os.close(ours)
        assert process.wait(60) == 0, shown
    return " ".join(STYLES.sub("", shown.decode()).split())


def read(descriptor: int) -> bytes:
    """The next bytes; none once the process has closed its end, which Linux reports as an error."""
    try:
        return os.read(descriptor, 65536)
    except OSError:
        return b""


@pytest.fixture
def saved_report(tmp_path: Path) -> Path:
    path = tmp_path / "latency.json"
    rows = [row(name, 2000.0, 2004.0, 1998.0, 2001.0, 2003.0) for name in ("ort-plain-half-nhwc-graph", "ort")]
    write_report(report(*rows), path)
    return path


@pytest.mark.parametrize("command", ["inspect", "verify", "report"])
def test_tables_are_complete_at_every_width(
    run_cli: Run, shared_bundle: Path, saved_report: Path, tmp_path: Path, command: str
) -> None:
    """What a pipe gets is the reference: it has every row in one line, whatever COLUMNS says."""
    arguments = (command, saved_report if command == "report" else shared_bundle)
    piped = run_cli(*arguments, env={**os.environ, "COLUMNS": "60"}).stdout
    cells = {cell for line in piped.splitlines() for cell in re.split(r"\s{2,}", line.strip()) if cell.strip("─ ")}
    assert "…" not in piped
    assert len(cells) > 15

    for width in (60,) if command == "verify" else (60, 80):  # verify takes longer
        shown = on_terminal(arguments, tmp_path, width)
        assert "…" not in shown
        assert {cell for cell in cells if " ".join(cell.split()) not in shown} <= NOT_REPEATED


def test_a_layer_takes_one_line_of_80_columns(run_cli: Run, shared_bundle: Path) -> None:
    lines = run_cli("inspect", shared_bundle).stdout.splitlines()

    table = lines[: next(index for index, line in enumerate(lines) if line.startswith("total"))]
    assert max(map(len, table)) <= 80
