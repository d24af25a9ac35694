import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.passes.edit import RewriteResult
from exporters.passes.pools import ReluAfterPool
from exporters.precision.half import head_nodes
from exporters.precision.observe import trunk_convolutions
from fcn_deploy.model_info import WINDOW_KEY
from tests.exporters.passes.graphs import operators, parsed, run, run_exactly, weights

POOL = "MaxPool<kernel_shape = [2, 2], strides = [2, 2]{end}>"
PLAIN = POOL.format(end="")
X = "float[1, 3, 9, 8] x"


def rewritten(model: ir.Model) -> RewriteResult:
    result = ReluAfterPool()(model)
    assert isinstance(result, RewriteResult)
    return result


@settings(deadline=None, max_examples=30)
@given(
    end=st.sampled_from(["", ", ceil_mode = 1", ", pads = [1, 1, 1, 1]"]),
    shift=st.floats(-3, 3),
    seed=st.integers(0, 99),
)
def test_every_value_stays_what_it_was(end: str, shift: float, seed: int) -> None:
    """With padding, which counts as less than anything, and with maps that are negative all over."""
    x = {"x": np.random.default_rng(seed).normal(shift, 1, (1, 3, 9, 8)).astype(np.float32)}
    model = parsed(f"r = Relu(x) y = {POOL.format(end=end)}(r)", X, "float[1, 3, N, M] y")
    (before,) = run_exactly(model, x)

    result = rewritten(model)

    assert [(site.node, site.applied) for site in result.sites] == [("y", True)]
    assert operators(model) == ["MaxPool", "Relu"]
    assert np.array_equal(run_exactly(model, x)[0], before)


def test_the_relu_takes_over_name_readers_and_window(tmp_path: object) -> None:
    body = f"c = Conv<pads = [1, 1, 1, 1]>(x, w, b) r = Relu(c) p = {PLAIN}(r) y = Conv(p, v) z = Neg(p)"
    arrays = {"w": weights(4, 3, 3, 3), "b": weights(4, 1)[:, 0] + 0.3, "v": weights(2, 4, 1, 1)}
    model = parsed(body, X, "float[1, 2, 4, 4] y, float[1, 4, 4, 4] z", **arrays)
    x = {"x": np.random.default_rng(0).normal(0, 1, (1, 3, 9, 8)).astype(np.float32)}
    before = run(model, tmp_path, x)
    pool = next(node for node in model.graph if node.op_type == "MaxPool")
    pool.metadata_props[WINDOW_KEY] = "2,3"

    assert rewritten(model).modified

    relu = next(node for node in model.graph if node.op_type == "Relu")
    assert (relu.name, relu.outputs[0].name, relu.metadata_props[WINDOW_KEY]) == ("p", "p", "2,3")
    assert {use.node.op_type for use in relu.outputs[0].uses()} == {"Conv", "Neg"}
    assert all(np.array_equal(a, b) for a, b in zip(before, run(model, tmp_path, x), strict=True))
    # A convolution that a pool and then a Relu follow is still one of the trunk's.
    assert [node.name for node in trunk_convolutions(model)] == ["c"]
    assert {node.name for node in head_nodes(model)} == {"y"}


Y, Z = "float[1, 3, 4, 4] y", "float[1, 3, 9, 8] z"


@pytest.mark.parametrize(("body", "outputs", "reason"), [
    (f"r = Relu(x) y = {PLAIN}(r) z = Neg(r)", f"{Y}, {Z}", "the Relu has other readers"),
    (f"z = Relu(x) y = {PLAIN}(z)", f"{Y}, {Z}", "the Relu has other readers"),
    (f"r = Relu(x) y, i = {PLAIN}(r)", f"{Y}, int64[1, 3, 4, 4] i", "it also outputs indices"),
])  # fmt: skip
def test_where_the_relu_is_needed_it_stays(body: str, outputs: str, reason: str) -> None:
    model = parsed(body, X, outputs)

    (site,) = rewritten(model).sites

    assert (site.applied, site.reason) == (False, reason)
    assert operators(model)[:2] == ["Relu", "MaxPool"]


def test_pools_of_anything_else_are_not_looked_at() -> None:
    assert rewritten(parsed(f"n = Neg(x) y = {PLAIN}(n)", X, "float[1, 3, 4, 4] y")).sites == ()
