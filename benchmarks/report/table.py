"""The rows of a report as text, and its summary in sentences: for the terminal, Markdown and the page."""

from collections.abc import Iterable, Sequence
from itertools import groupby

from benchmarks.engine import environment
from benchmarks.engine.cases import BASELINES, OURS, Runtime
from benchmarks.report.results import BenchReport, Row, RowKey, RowStatus
from benchmarks.stats.comparison import Ratio
from benchmarks.stats.timing import Measurement

COLUMNS = (
    "row", "computes", "median", "95 % interval", "time ratio", "images/s", "of direct limit", "of its limit", "tail",
    "load", "first run", "memory", "parity", "note",
)  # fmt: skip
# The columns that fit a terminal of 80 columns.
NARROW = ("row", "median", "±", "time ratio", "direct", "limit", "parity", "note")
NOTHING = "-"
INTERRUPTED = "The run was interrupted: this is what was measured until then."
# These compute a graph's convolutions as they are, so nothing but a wrong limit lets them exceed it by so much.
_DIRECT = frozenset({Runtime.PYTORCH, Runtime.COMPILE, Runtime.ONNXRUNTIME})
_OVER_LIMIT = 1.03


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
        return row.key.case, described(row), *(NOTHING,) * (len(COLUMNS) - 4), parity(row), note(row)
    return (
        row.key.case,
        described(row),
        duration(measured.median_ns),
        bounds(measured),
        ratio(row, baseline),
        rate(row),
        _percent(report.direct_limit_share(row)),
        _percent(report.limit_share(row)),
        tail(measured),
        duration(row.load_ns) if row.load_ns else NOTHING,
        duration(measured.first_ns),
        f"{row.peak_bytes / 1e9:.1f} GB" if row.peak_bytes else NOTHING,
        parity(row),
        note(row),
    )


def cells_by_column(report: BenchReport, row: Row, baseline: Row | None) -> dict[str, str]:
    """Return the same texts by the names of their columns."""
    return dict(zip(COLUMNS, cells(report, row, baseline), strict=True))


def note(row: Row) -> str:
    """Return what restricts the value of a row's figures; how it ended if it has none."""
    if row.measurement is None:
        return str(row.status)
    unstable = [] if row.measurement.stable else ["unstable"]
    return ", ".join([*unstable, *([f"beyond {row.precision}"] if row.problem else [])])


def narrow_cells(report: BenchReport, row: Row, baseline: Row | None) -> tuple[str, ...]:
    """Return one text per column of `NARROW`."""
    texts = cells_by_column(report, row, baseline)
    width = half_width(row.measurement) if row.measurement else NOTHING
    shares = {"direct": texts["of direct limit"], "limit": texts["of its limit"]}
    return tuple({**texts, **shares, "±": width}[name] for name in NARROW)


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


def _percent(share: float | None) -> str:
    return f"{share:.0%}" if share is not None else NOTHING


def remarks(report: BenchReport) -> list[str]:
    """Return, row by row, why rows have no figure, or an unreliable one."""
    found = [_groups_remark(title, rows) for title, rows in groups(report) if any(row.first_turn for row in rows)]
    for row in report.rows:
        if row.problem:
            found.append(f"{row.key}: {row.status}: {row.problem}")
        elif row.status is RowStatus.PENDING:
            found.append(f"{row.key}: interrupted before its first sample")
        if row.measurement is not None and not row.measurement.stable:
            found.append(f"{row.key}: unstable: {'; '.join(row.measurement.instabilities)}")
    return found


def _groups_remark(title: str, rows: Sequence[Row]) -> str:
    turns = {row.key.case: len(row.measurement.rounds_ns) for row in rows if row.measurement is not None}
    common = [case for case, count in turns.items() if count > min(turns.values())]
    found = f"{title}: memory was too short for all rows at once"
    return f"{found}; {' and '.join(common)} took turns with each group of the others." if common else f"{found}."


def _three_digits(value: float) -> str:
    return f"{value:.{max(0, 2 - len(str(int(value))) + 1)}f}"


def fastest_of(title: str, rows: Sequence[Row]) -> str:
    """Return in a sentence which row of a network is fastest, at what error, and which are faster but less exact."""
    ours = next((row for row in rows if row.key.case == OURS), rows[0])
    compared = [row for row in rows if row.measurement is not None]
    compared = [row for row in compared if not row.end_to_end] or compared
    exact = [row for row in compared if row.precision == ours.precision and not row.problem]
    first = fastest(exact)
    if first is None:
        return f"{title}: nothing was measured in {ours.precision}."
    level = [row for row in exact if Ratio.of_rows(row, first).low <= 1]
    best = ours if ours in level else first
    baseline = baseline_of(rows)
    found = f"{title}: fastest in {ours.precision} is {best.key.case} ({computes(best)}), {_at_what_error(best)}"
    if baseline is not None and baseline is not best:
        found += f", {Ratio.of_rows(baseline, best)} times as fast as {baseline.key.case}"
    same = ", ".join(row.key.case for row in level if row is not best)
    found += f"; no measurable difference from {same}." if same else "."
    faster = [row for row in compared if row not in exact and Ratio.of_rows(row, best).high < 1]
    return f"{found}{_listed('Faster', faster, best, False)}{_listed('Faster, but less exact', faster, best, True)}"


def _listed(claim: str, rows: Iterable[Row], best: Row, less_exact: bool) -> str:
    """Return a sentence that names those of `rows` that are less exact than `best`, or the others."""
    texts = [
        f"{row.key.case} ({row.runtime}, {row.precision}), {_at_what_error(row)}"
        for row in rows
        if _is_less_exact(row, best) is less_exact
    ]
    return f" {claim}: {'; '.join(texts)}." if texts else ""


def _is_less_exact(row: Row, other: Row) -> bool:
    return bool(row.problem) or (row.worst_error or 0, row.flips) > (other.worst_error or 0, other.flips)


def _at_what_error(row: Row) -> str:
    time = duration(row.measurement.median_ns) if row.measurement else NOTHING
    if row.worst_error is None:
        return f"{time}, {parity(row)}"
    return f"{time} at an error of {row.worst_error:.1e} of the range"


def summary(report: BenchReport) -> list[str]:
    """Return a sentence per network, and after an interruption one that says so."""
    found = [fastest_of(title, rows) for title, rows in groups(report)]
    return [*found, INTERRUPTED] if report.interrupted else found


def doubts(report: BenchReport) -> str:
    """Return in one line what makes the figures uncertain, and what helps; empty if nothing does."""
    unstable = [row for row in report.rows if row.measurement is not None and not row.measurement.stable]
    found = [note.rstrip(".") for note in environment.notes(dict(report.environment))]
    if unstable:
        found.append(f"{len(unstable)} of {len(report.rows)} rows are unstable ({_names(unstable)})")
    beyond = [row for row in report.rows if row.runtime in _DIRECT and (report.limit_share(row) or 0) > _OVER_LIMIT]
    if beyond:
        found.append(
            f"rows beyond their own limit ({_names(beyond)}): the device was slower while its rates were measured"
        )
    if not found:
        return ""
    return f"Doubts: {'; '.join(found)}. Stop other programs, or measure longer with --duration."


def _names(rows: Iterable[Row]) -> str:
    return ", ".join(dict.fromkeys(row.key.case for row in rows))


def without_figures(report: BenchReport) -> list[str]:
    """Return why rows have no latency: a line per reason, with the rows that it concerns."""
    rows: dict[str, list[str]] = {}
    for row in report.rows:
        if row.measurement is None:
            reason = row.problem or "interrupted before its first sample"
            rows.setdefault(f"{row.status}: {reason}", []).append(row.key.case)
    return [f"{', '.join(dict.fromkeys(names))}: {reason}" for reason, names in rows.items()]
