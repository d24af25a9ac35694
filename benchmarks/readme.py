"""Puts the tables of committed results into README.md, so that no figure there is typed by hand.

Run as `python -m benchmarks.readme`; a test compares what stands in README.md with the results.
"""

import re
import sys
from pathlib import Path

from benchmarks.report import markdown_table
from benchmarks.results import read_report
from benchmarks.table import groups

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
README = ROOT / "README.md"
_BEGIN = "<!-- latency of {name}: made by `python -m benchmarks.readme` -->"
_END = "<!-- end -->"


def with_tables(text: str) -> str:
    """`text` with every marked block replaced by the tables of the results it names.

    Raises:
        InputFileError: results that are named do not exist.
    """
    marked = re.escape(_BEGIN).replace(r"\{name\}", "([^:]+)") + ".*?" + re.escape(_END)
    return re.sub(marked, lambda found: block(found.group(1)), text, flags=re.DOTALL)


def block(name: str) -> str:
    """The tables of the results called `name`, between their marks."""
    report = read_report(RESULTS / name / "latency.json")
    lines = [_BEGIN.format(name=name)]
    for title, rows in groups(report):
        lines += ["", f"{title} ({report.machine}):", "", *markdown_table(report, rows)]
    return "\n".join([*lines, "", _END])


if __name__ == "__main__":
    README.write_text(with_tables(README.read_text(encoding="utf-8")), encoding="utf-8")
    sys.stdout.write(f"wrote {README.name}\n")
