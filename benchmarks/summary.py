"""What a report says in plain sentences, for the top of a page."""

from collections.abc import Mapping, Sequence

from benchmarks import environment
from benchmarks.cases import Graph
from benchmarks.comparison import Ratio
from benchmarks.results import BenchReport, Row, Status
from benchmarks.table import SUBJECT, bounds, duration, fastest, groups, rate

# (how a case is called in a sentence, its name)
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
)


def sentences(report: BenchReport) -> list[str]:
    """One sentence per fact, most important first."""
    found = []
    for title, rows in groups(report):
        by_case = {row.key.case: row for row in rows if row.measurement is not None}
        subject = by_case.get(SUBJECT) or fastest(row for row in rows if row.graph == Graph.BUNDLE) or fastest(rows)
        if subject is not None:
            found += [_headline(title, subject), *_against(subject, by_case), *_shares(report, subject, by_case)]
    return [*found, *_doubts(report)]


def _headline(title: str, row: Row) -> str:
    measured = row.measurement
    if measured is None:
        return ""
    return (
        f"{title}: {row.runtime} takes {duration(measured.median_ns)} per run of the {row.graph} graph "
        f"(95 % sure: {bounds(measured)}), {rate(row)} images per second."
    )


def _against(subject: Row, by_case: Mapping[str, Row]) -> list[str]:
    clauses = []
    for name, called in _PEERS:
        peer = by_case.get(name)
        if peer is None or peer is subject or peer.measurement is None or subject.measurement is None:
            continue
        ratio = Ratio.of_rows(peer, subject)
        if ratio.low <= 1 <= ratio.high:
            clauses.append(f"no measurable difference from {called}")
        else:
            clauses.append(f"{ratio.value:.2f} times as fast as {called}")
    return [f"That is {_joined(clauses)}."] if clauses else []


def _shares(report: BenchReport, subject: Row, by_case: Mapping[str, Row]) -> list[str]:
    found = []
    share = report.limit_share(subject)
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


def _doubts(report: BenchReport) -> list[str]:
    unstable = sum(row.measurement is not None and not row.measurement.stable for row in report.rows)
    found = list(environment.notes(dict(report.environment)))
    if unstable:
        found.append(f"{unstable} of {len(report.rows)} rows are unstable: do not build on their figures.")
    wrong = [row.key.case for row in report.rows if row.status is Status.WRONG]
    if wrong:
        found.append(f"Wrong outputs, so no latency: {', '.join(wrong)}.")
    if report.interrupted:
        found.append("The run was interrupted: what follows is what was measured until then.")
    return found


def _joined(clauses: Sequence[str]) -> str:
    return clauses[0] if len(clauses) == 1 else f"{', '.join(clauses[:-1])} and {clauses[-1]}"
