from dataclasses import replace

import pytest

from benchmarks.gpu.figures import figures, markdown
from benchmarks.report.results import Ceilings, NodeTime, WorkEstimate
from tests.benchmarks.reports import half, report

ROWS = (
    half("compile-fp16", 1.5, 1.5, 1.5),
    half("ort-plain-half", 4.0, 4.0, 4.0),
    half("ort", 2.5, 2.5, 2.5),
    half("ort-plain-half-graph", 1.8, 1.8, 1.8),
    half("ort-graph", 1.2, 1.2, 1.2),
    half("session-run", 12.0, 12.0, 12.0, to_labels=True),
    half("session-run-e2e", 24.0, 24.0, 24.0, to_labels=True),
    half("pytorch-fp16-e2e", 3.0, 3.0, 3.0, to_labels=True),
    half("ort-e2e", 2.0, 2.0, 2.0, to_labels=True),
    half("ort-graph-e2e", 1.6, 1.6, 1.6, to_labels=True),
    replace(half("ort-nhwc-graph", 8.0, 8.0, 8.0, batch=16), work=WorkEstimate(16 * 10**11, 10**6, 16 * 10**11)),
)
# 1.6e12 multiply-adds at 5e14 a second take 3.2 ms: 40 % of 8.
CEILINGS = Ceilings(3e12, {"fp16": 5e14})


def test_each_figure_is_the_ratio_of_medians_that_it_says() -> None:
    found = figures(report(*ROWS, ceilings=CEILINGS))

    values = [(f.least, f.rows, f.met) for f in found]
    assert values == [
        (8, ("session-run", "ort-graph-e2e"), False),
        (8, ("session-run-e2e", "ort-graph-e2e"), True),
        (3, ("pytorch-fp16-e2e", "ort-graph-e2e"), False),
        (1.3, ("ort-plain-half-graph", "ort-graph"), True),
        (1, ("compile-fp16", "ort-graph"), True),
        (0.45, ("ort-nhwc-graph",), False),
    ]
    assert [f.found.value for f in found if f.found] == pytest.approx([7.5, 15.0, 1.875, 1.5, 1.25, 0.4])


def test_rows_of_other_networks_and_ends_do_not_count() -> None:
    others = [replace(r, key=replace(r.key, network=r.key.network.replace("8s", "32s"))) for r in ROWS]

    assert [figure.met for figure in figures(report(*others, ceilings=CEILINGS))] == [None] * 6
    assert [figure.met for figure in figures(report(*ROWS[:5]))] == [None, None, None, True, True, None]


def test_what_was_not_measured_says_so() -> None:
    text = markdown(report(ROWS[2], environment={**report().environment, "not_measured": {"FCN-32s": "no time"}}))

    assert text.count("| not measured |") == 6
    assert "| FCN-32s | no time |" in text


def test_errors_are_listed_by_tier_with_the_bound() -> None:
    text = markdown(report(*ROWS, ceilings=CEILINGS))

    assert "| fp16 | 11 | 5.0e-07 | 0.005 | 0 |" in text


def test_nodes_are_listed_with_their_share_of_the_limit() -> None:
    """1e9 multiply-adds at 5e14 a second are 2 µs, half of the 4 µs it took."""
    nodes = (NodeTime("conv", "Conv", 4000.0, 10**9, 10), NodeTime("nothing", "Relu", 0.0, 0, 10))
    rows = [replace(r, nodes=nodes) if r.key.case == "ort-graph" else r for r in ROWS]

    text = markdown(report(*rows, ceilings=CEILINGS))

    assert "## Nodes of FCN-8s fp16, ort-graph: 4.00 µs in all, 1.20 ms measured" in text
    assert "| conv | Conv | 4.00 µs | 0.3% | 1.00 G | 50% |" in text
    assert "| nothing | Relu | 0 ns | 0.0% | - | - |" in text
