import itertools

from benchmarks.engine.cases import CASES, Graph
from benchmarks.gpu.plan import END_TO_END, PAIRS, PLAN
from fcn_deploy import Precision, Provider, Variant

BY_NAME = {case.name: case for case in CASES}


def test_every_variant_is_measured_in_every_arithmetic_with_either_end() -> None:
    found = {(entry.variant, entry.precision, entry.labels) for entry in PLAN}

    arithmetics = (Precision.FP32, Precision.FP16, Precision.BF16)
    assert found == set(itertools.product(Variant, arithmetics, (False, True)))
    assert {entry.batch for entry in PLAN} == {1, 2, 4, 8, 16}
    assert len({entry.name for entry in PLAN}) == len(PLAN)


def test_every_row_is_one_that_cuda_has() -> None:
    for entry in PLAN:
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
