import itertools

from benchmarks.engine.cases import CASES, Graph
from benchmarks.gpu.plan import END_TO_END, HEADLINE, PAIRS, PLAN, plan_for
from fcn_deploy import Precision, Provider, Variant

BY_NAME = {case.name: case for case in CASES}


def test_every_variant_is_measured_in_every_arithmetic_with_either_end() -> None:
    found = {(entry.variant, entry.precision, entry.labels) for entry in PLAN}

    arithmetics = (Precision.FP32, Precision.FP16, Precision.BF16)
    assert found == set(itertools.product(Variant, arithmetics, (False, True)))
    assert {entry.batch for entry in PLAN} == {1, 2, 4, 8, 16}
    assert len({entry.name for entry in PLAN}) == len(PLAN)


def test_every_row_is_one_that_cuda_has() -> None:
    for entry in (*PLAN, *HEADLINE):
        assert {case.name for case in entry.cases(Provider.CUDA)} == set(entry.rows)


def test_pairs_differ_in_nothing_but_the_graph() -> None:
    for plain, ours in PAIRS:
        one, other = BY_NAME[plain], BY_NAME[ours]
        assert (one.graph, other.graph) == (Graph.PLAIN_HALF, Graph.BUNDLE)
        assert (one.nhwc, one.cuda_graph, one.end_to_end) == (other.nhwc, other.cuda_graph, other.end_to_end)
    assert all(BY_NAME[name].end_to_end and BY_NAME[name].graph is Graph.BUNDLE for name in END_TO_END)


def test_the_figures_rows_are_measured_first_and_together() -> None:
    """Rows of one entry take turns; what is compared has to."""
    compute, labels, batch = PLAN[:3]

    assert {"compile-fp16", *(row for pair in PAIRS for row in pair)} <= set(compute.rows)
    assert {"session-run", "pytorch-fp16-e2e", *END_TO_END} <= set(labels.rows)
    assert labels.labels
    assert batch.batch == 16
    assert {entry.variant for entry in PLAN[:3]} == {Variant.FCN8S}


def test_a_run_of_two_minutes_measures_the_headline_rows_only() -> None:
    assert (plan_for(2), plan_for(8)) == (HEADLINE, PLAN)
    assert {(entry.variant, entry.precision, entry.batch, entry.labels) for entry in HEADLINE} == {
        (Variant.FCN8S, Precision.FP16, 1, True),
        (Variant.FCN8S, Precision.FP32, 1, False),
        (Variant.FCN8S, Precision.FP16, 1, False),
    }
    labels, _, compute = HEADLINE
    assert {"session-run", "session-run-e2e", "pytorch-fp16-e2e"} < set(labels.rows)
    assert {"pytorch-fp16", "compile-fp16", *PAIRS[-1]} == set(compute.rows)
    # At five seconds a row they fit beside 20 seconds of tests; torch.compile takes a minute or two more.
    assert 5 * sum(len(entry.rows) for entry in HEADLINE) < 60
