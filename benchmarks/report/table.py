"""The rows of a report as text, and its summary in sentences: for the terminal, Markdown and the page."""

from collections.abc import Iterable, Mapping, Sequence
from itertools import groupby

from benchmarks.engine import environment
from benchmarks.engine.cases import Graph
from benchmarks.report.results import BenchReport, Row, RowKey, RowStatus
from benchmarks.stats.comparison import Ratio
from benchmarks.stats.timing import Measurement

# The row of the artifact itself, and the rows that may be its baseline: the first one that was measured.
OURS, BASELINES = "ort", ("ort-plain", "ort-plain-half", "ort-plain-half-nhwc-graph")
COLUMNS = (
    "row", "computes", "median", "95 % interval", "time ratio", "images/s", "of limit", "tail", "first run", "memory",
    "parity", "note",
)  # fmt: skip
# The columns that fit a terminal of 80 columns.
NARROW = ("row", "median", "±", "time ratio", "limit", "parity", "note")
NOTHING = "-"


def groups(report: BenchReport) -> list[tuple[str, tuple[Row, ...]]]:
    """Group rows by network, shape and provider: (`FCN-8s, 1x3x500x500, cpu`, rows)."""
    return [(name, tuple(rows)) for name, rows in groupby(report.rows, key=lambda row: title_of(row.key))]


def title_of(key: RowKey) -> str:
    """Return the network, its input shape, and where it ran."""
    return f"{key.network}, {'x'.join(map(str, key.shape))}, {key.provider}"


def baseline_of(rows: Sequence[Row]) -> Row | None:
    """Return the row that others are divided by: the plain graph in ONNX Runtime, or else the first measured row."""
    measured = {row.key.case: row for row in rows if row.measurement is not None}
    plain = [measured[case] for case in BASELINES if case in measured]
    return next(iter([*plain, *measured.values()]), None)


def fastest(rows: Iterable[Row]) -> Row | None:
    """Return the measured row with the lowest median."""
    found = [(row.measurement.median_ns, row) for row in rows if row.measurement is not None]
    return min(found, key=lambda pair: pair[0])[1] if found else None


def markdown_lines(columns: Sequence[str], body: Iterable[Sequence[str]]) -> list[str]:
    """Return the lines of a table in Markdown."""
    return [f"| {' | '.join(line)} |" for line in (columns, ["---"] * len(columns), *body)]


def cells(report: BenchReport, row: Row, baseline: Row | None) -> tuple[str, ...]:
    """Return one text per column."""
    measured = row.measurement
    if measured is None:
        return row.key.case, described(row), *(NOTHING,) * (len(COLUMNS) - 4), parity(row), str(row.status)
    share = report.limit_share(row)
    return (
        row.key.case,
        described(row),
        duration(measured.median_ns),
        bounds(measured),
        ratio(row, baseline),
        rate(row),
        f"{share:.0%}" if share is not None else NOTHING,
        tail(measured),
        duration(measured.first_ns),
        f"{row.peak_bytes / 1e9:.1f} GB" if row.peak_bytes else NOTHING,
        parity(row),
        ", ".join([*([] if measured.stable else ["unstable"]), *([f"beyond {row.precision}"] if row.problem else [])]),
    )


def narrow_cells(report: BenchReport, row: Row, baseline: Row | None) -> tuple[str, ...]:
    """Return one text per column of `NARROW`."""
    texts = dict(zip(COLUMNS, cells(report, row, baseline), strict=True))
    width = half_width(row.measurement) if row.measurement else NOTHING
    return tuple({**texts, "±": width, "limit": texts["of limit"]}[name] for name in NARROW)


def computes(row: Row) -> str:
    """Return runtime, graph and precision of a row."""
    scope = ", pixels to labels" if row.end_to_end else ""
    return f"{row.runtime}, {row.graph}, {row.precision}{scope}"


def described(row: Row) -> str:
    """Return runtime, graph and precision of a row, with the runtime's settings."""
    return f"{computes(row)}; {row.options}" if row.options else computes(row)


def tail(measured: Measurement) -> str:
    """Return the highest percentile that enough samples lie beyond."""
    found = measured.percentiles_ns
    if not found:
        return NOTHING
    name = max(found)
    return f"{name} {duration(found[name])}"


def phases(rows: Sequence[Row]) -> list[str]:
    """Return the phases that were timed separately: copies to a GPU and back, and the run between CUDA events."""
    timed = [(row.key.case, row.measurement.phase_medians_ns) for row in rows if row.measurement is not None]
    texts = ((case, [f"{name} {duration(ns)}" for name, ns in medians.items()]) for case, medians in timed if medians)
    return [f"{case}: {', '.join(parts)}" for case, parts in texts]


def duration(nanoseconds: float) -> str:
    """Return a duration with three digits, in a suitable unit."""
    for unit, size in (("s", 1e9), ("ms", 1e6), ("µs", 1e3)):
        if abs(nanoseconds) >= size:
            return f"{_three_digits(nanoseconds / size)} {unit}"
    return f"{nanoseconds:.0f} ns"


def rate(row: Row) -> str:
    """Return images per second with at least three digits."""
    found = row.images_per_s
    if found is None:
        return NOTHING
    return f"{found:.3g}" if found < 1000 else f"{found:,.0f}"


def bounds(measured: Measurement) -> str:
    """Return the confidence interval of the median, with one unit where both bounds have the same."""
    (low, unit), (high, other) = (duration(ns).split() for ns in measured.interval_ns)
    return f"{low} .. {high} {other}" if unit == other else f"{low} {unit} .. {high} {other}"


def half_width(measured: Measurement) -> str:
    """Return half the confidence interval of the median, as a share of the median."""
    low, high = measured.interval_ns
    return f"{(high - low) / 2 / measured.median_ns:.1%}"


def ratio(row: Row, baseline: Row | None) -> str:
    """Return the time over the baseline's, with half the width of its interval; 1 for the baseline itself."""
    if baseline is None or baseline is row:
        return "1"
    found = Ratio.of_rows(row, baseline)
    return f"{found.value:.2f} ± {(found.high - found.low) / 2:.2f}"


def parity(row: Row) -> str:
    """Return how much its outputs differ from the reference's."""
    if not row.parity:
        return NOTHING
    flips = f"{row.flips} flips" if row.flips != 1 else "1 flip"
    if row.worst_error is None:
        return flips
    return f"{row.worst_error:.1e}" + (f", {flips}" if row.flips else "")


def remarks(report: BenchReport) -> list[str]:
    """Return why rows have no figure, or an unreliable one."""
    found = []
    if any(row.group for row in report.rows):
        found.append("Memory was too short for all rows at once: rows of different groups did not take turns.")
    for row in report.rows:
        if row.problem:
            found.append(f"{row.key}: {row.status}: {row.problem}")
        elif row.status is RowStatus.PENDING:
            found.append(f"{row.key}: interrupted before its first sample")
        if row.measurement is not None and not row.measurement.stable:
            found.append(f"{row.key}: unstable: {'; '.join(row.measurement.instabilities)}")
    return found


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}"


# (name of a case, its description in a sentence)
_PEERS = (
    ("ort-plain", "the plainly exported graph in the same runtime"),
    ("ort-plain-half", "the plainly exported graph in half precision"),
    ("ort-plain-half-nhwc-graph", "the plainly exported graph in half precision, channels last and captured"),
    ("ort-simplified", "the simplified graph in the same runtime"),
    ("pytorch", "PyTorch eager"),
    ("pytorch-fp16", "PyTorch eager in half precision"),
    ("compile", "torch.compile"),
    ("compile-fp16", "torch.compile in half precision"),
    ("openvino", "OpenVINO on the same graph"),
    ("ncnn-plain", "ncnn on the plain graph"),
    ("ncnn", "ncnn on our graph with its own convolutions"),
    ("mnn-plain", "MNN on the plain graph"),
    ("mnn", "MNN on our graph with its own convolutions"),
)


def sentences(report: BenchReport) -> list[str]:
    """Summarise a report in sentences, most important first."""
    found = []
    for title, rows in groups(report):
        by_case = {row.key.case: row for row in rows if row.measurement is not None}
        ours = by_case.get(OURS) or fastest(row for row in rows if row.graph == Graph.BUNDLE) or fastest(rows)
        if ours is not None and ours.measurement is not None:
            median, interval = duration(ours.measurement.median_ns), bounds(ours.measurement)
            found.append(
                f"{title}: {ours.runtime} takes {median} per run of the {ours.graph} graph "
                f"(95 % sure: {interval}), {rate(ours)} images per second."
            )
            found += [*_comparisons(ours, by_case), *_limits(report, ours, by_case)]
    return [*found, *_warnings(report)]


def _comparisons(ours: Row, by_case: Mapping[str, Row]) -> list[str]:
    clauses = []
    for name, called in _PEERS:
        peer = by_case.get(name)
        if peer is None or peer is ours:
            continue
        ratio = Ratio.of_rows(peer, ours)
        if ratio.low <= 1 <= ratio.high:
            clauses.append(f"no measurable difference from {called}")
        else:
            clauses.append(f"{ratio.value:.2f} times as fast as {called}")
    return [f"That is {_joined(clauses)}."] if clauses else []


def _limits(report: BenchReport, ours: Row, by_case: Mapping[str, Row]) -> list[str]:
    found = []
    share = report.limit_share(ours)
    if share is not None:
        found.append(
            f"It reaches {share:.0%} of what this device can do: the limit follows from its multiply-adds and bytes "
            "and from the fastest matrix product and copy measured in the same run."
        )
    end_to_end = by_case.get("ort-e2e")
    if end_to_end is not None and end_to_end.measurement is not None:
        found.append(
            f"From a photo's pixels in memory to its labels in memory it takes "
            f"{duration(end_to_end.measurement.median_ns)}."
        )
    return found


def _warnings(report: BenchReport) -> list[str]:
    unstable = sum(row.measurement is not None and not row.measurement.stable for row in report.rows)
    found = list(environment.notes(dict(report.environment)))
    if unstable:
        found.append(f"{unstable} of {len(report.rows)} rows are unstable: do not rely on their figures.")
    wrong = [row.key.case for row in report.rows if row.status is RowStatus.WRONG]
    if wrong:
        found.append(f"Wrong outputs, so no latency: {', '.join(wrong)}.")
    if report.interrupted:
        found.append("The run was interrupted: what follows is what was measured until then.")
    return found


def _joined(clauses: Sequence[str]) -> str:
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
