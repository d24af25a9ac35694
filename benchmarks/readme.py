"""Writes the tables of committed results into README.md and docs/figures.md, so that no figure there is typed by hand.

For GPUs the newest results are shown, or a line that there are none yet.

Run as `python -m benchmarks.readme`; a test compares both files with the results.
"""

import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks.engine.cases import Graph
from benchmarks.gpu import figures
from benchmarks.report.page import markdown_table
from benchmarks.report.results import BenchReport, Row, read_report
from benchmarks.report.table import NOTHING, duration, fastest, groups, markdown_lines
from benchmarks.stats.comparison import Ratio

ROOT = Path(__file__).parent.parent
RESULTS = Path(__file__).parent / "results"
DOCUMENTS = (ROOT / "README.md", ROOT / "docs" / "figures.md")
_BEGIN = "<!-- {kind} of {name}: made by `python -m benchmarks.readme` -->"
_END = "<!-- end -->"
_GPU = "gpu"
_NO_GPU = (
    "No results of a GPU are committed yet: `make bench-gpu` makes them, `python -m benchmarks.readme` shows them."
)
_GPU_COLUMNS = ("network", "our graph", "plain graph, ONNX Runtime", "session.run", "PyTorch eager", "torch.compile")
_GPU_PEERS = ("ort-plain", "session-run", "pytorch", "compile")
# (the row with the rewritten graph, the same runtime's row without, how the column is called)
_PAIRS = (
    ("ort", "ort-plain", "ours, against the plain graph in ONNX Runtime"),
    ("ort", "ncnn-plain", "against ncnn"),
    ("ort", "mnn-plain", "against MNN"),
    ("ort", "openvino-plain", "against OpenVINO"),
    ("ort", "pytorch", "against PyTorch eager"),
    ("openvino", "openvino-plain", "OpenVINO: our graph against the plain one"),
)


def with_tables(text: str) -> str:
    """Return `text` with every marked block replaced by the tables of the results it names.

    Raises:
        InputFileError: results that are named do not exist.
    """
    kinds = "|".join([*_TABLES, _GPU])
    marked = re.escape(_BEGIN).replace(r"\{kind\}", f"({kinds})").replace(r"\{name\}", "([^:]+)")
    return re.sub(f"{marked}.*?{re.escape(_END)}", lambda found: block(found[1], found[2]), text, flags=re.DOTALL)


def block(kind: str, name: str) -> str:
    """Return a table of the results called `name`, between its marks."""
    lines = gpu_lines() if kind == _GPU else _TABLES[kind](read_report(RESULTS / name / "latency.json"))
    return "\n".join([_BEGIN.format(kind=kind, name=name), "", *lines, "", _END])


def gpu_lines() -> list[str]:
    """Return figures and latencies of the newest results of a GPU; without any, a line that says so."""
    found = [(path.parent.name, read_report(path)) for path in sorted(RESULTS.glob("*/latency.json"))]
    on_gpu = [(name, report) for name, report in found if any(row.key.provider == "cuda" for row in report.rows)]
    if not on_gpu:
        return [_NO_GPU]
    name, report = max(on_gpu, key=lambda pair: str(pair[1].environment["date"]))
    e = report.environment
    packages = ", ".join(f"{package} {version}" for package, version in e["versions"].items())
    folder = f"[benchmarks/results/{name}](benchmarks/results/{name}/figures.md)"
    lines = [f"{report.machine}, {folder}: `{' '.join(e['command'])}`; {packages}.", ""]
    return [*lines, *figures.figure_table(report), "", *_fastest_rows(report)]


def _fastest_rows(report: BenchReport) -> list[str]:
    """Return the fastest row of our graph for each network and batch, beside the fastest of each kind of peer.

    Where rows go from pixels to labels on the host, only these are compared.
    """
    body = []
    for title, rows in groups(report):
        compared = [row for row in rows if row.end_to_end] or rows
        kinds = [[row for row in compared if row.key.case.startswith(starts)] for starts in _GPU_PEERS]
        ours = [row for row in compared if row.graph == Graph.BUNDLE]
        body.append((title, *(_fastest(found) for found in (ours, *kinds))))
    return markdown_lines(_GPU_COLUMNS, body)


def _fastest(rows: Sequence[Row]) -> str:
    row = fastest(rows)
    return f"{duration(row.measurement.median_ns)} ({row.key.case})" if row and row.measurement else NOTHING


def _latency(report: BenchReport) -> list[str]:
    """Return all rows of the first network."""
    title, rows = groups(report)[0]
    return [f"{title} ({report.machine}):", "", *markdown_table(report, rows)]


def _gains(report: BenchReport) -> list[str]:
    """Return how many times as fast every network is, with 95 % intervals."""
    lines = [f"| {report.machine} | {' | '.join(column for _, _, column in _PAIRS)} |", "|---|" + "---|" * len(_PAIRS)]
    for title, rows in groups(report):
        by_case = {row.key.case: row for row in rows if row.measurement is not None}
        cells = [_times_as_fast(by_case, ours, peer) for ours, peer, _ in _PAIRS]
        lines.append(f"| {title.partition(',')[0]} | {' | '.join(cells)} |")
    return lines


def _times_as_fast(by_case: Mapping[str, Row], ours: str, peer: str) -> str:
    if not {ours, peer} <= by_case.keys():
        return NOTHING
    return str(Ratio.of_rows(by_case[peer], by_case[ours]))


_TABLES: Mapping[str, Callable[[BenchReport], Sequence[str]]] = {"latency": _latency, "gains": _gains}


if __name__ == "__main__":
    for document in DOCUMENTS:
        document.write_text(with_tables(document.read_text(encoding="utf-8")), encoding="utf-8")
        print(f"wrote {document.relative_to(ROOT)}")
