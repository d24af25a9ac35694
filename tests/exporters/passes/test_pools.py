import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.passes.edit import RewriteResult, Site
from exporters.passes.pools import PoolMaximum
from tests.exporters.passes.graphs import parsed, run

SIZES = st.integers(2, 9)
ENDS = ("ceil_mode = 0", "ceil_mode = 1", "pads = [0, 0, 1, 1]", "pads = [0, 0, 0, 1]")


def applied(model: ir.Model) -> Site:
    """What became of the graph's only pool."""
    result = PoolMaximum()(model)
    assert isinstance(result, RewriteResult)
    (site,) = result.sites
    return site


def pooled(x: np.ndarray, rounds_up: tuple[bool, bool]) -> np.ndarray:
    """Cell by cell, whatever of each lies within the map."""
    sizes = [(n + up) // 2 for n, up in zip(x.shape[2:], rounds_up, strict=True)]
    cells = [
        [x[:, :, 2 * i : 2 * i + 2, 2 * j : 2 * j + 2].max((2, 3)) for j in range(sizes[1])] for i in range(sizes[0])
    ]
    return np.array(cells).transpose(2, 3, 0, 1)


@settings(deadline=None)
@given(height=SIZES, width=SIZES, end=st.sampled_from(ENDS), seed=st.integers(0, 99))
def test_it_is_the_same_pool(
    tmp_path_factory: pytest.TempPathFactory, height: int, width: int, end: str, seed: int
) -> None:
    x = np.random.default_rng(seed).normal(-3, 1, (2, 3, height, width)).astype(np.float32)
    rounds_up = {ENDS[0]: (False, False), ENDS[3]: (False, True)}.get(end, (True, True))
    expected = pooled(x, rounds_up)
    model = parsed(
        f"y = MaxPool<kernel_shape = [2, 2], strides = [2, 2], {end}>(x)",
        f"float[2, 3, {height}, {width}] x",
        f"float[{', '.join(map(str, expected.shape))}] y",
    )

    assert applied(model).applied
    assert "MaxPool" not in {node.op_type for node in model.graph}
    (found,) = run(model, tmp_path_factory.mktemp("pool"), {"x": x})
    assert np.array_equal(found, expected)


@pytest.mark.parametrize(("attributes", "reason"), [
    ("kernel_shape = [3, 3], strides = [2, 2]", "it has kernel_shape (3, 3)"),
    ("kernel_shape = [2, 2]", "it has strides (1, 1)"),
    ("kernel_shape = [2, 2], strides = [2, 2], dilations = [2, 1]", "it has dilations (2, 1)"),
    ("kernel_shape = [2, 2], strides = [2, 2], pads = [1, 0, 0, 0]", "it pads by (1, 0, 0, 0), not by one pixel"),
    ("kernel_shape = [2, 2], strides = [2, 2], auto_pad = \"SAME_UPPER\"", "it pads by"),
])  # fmt: skip
def test_other_pools_are_left_alone(attributes: str, reason: str) -> None:
    model = parsed(f"y = MaxPool<{attributes}>(x)", "float[1, 2, 8, 8] x", "float[1, 2, N, M] y")

    site = applied(model)

    assert not site.applied
    assert site.reason.startswith(reason)
    assert [node.op_type for node in model.graph] == ["MaxPool"]


def test_a_map_of_unknown_size_is_left_alone() -> None:
    model = parsed(
        "y = MaxPool<kernel_shape = [2, 2], strides = [2, 2]>(x)", "float[1, 2, N, 8] x", "float[1, 2, M, 4] y"
    )

    site = applied(model)

    assert site.reason == "its shapes are not fixed, or it also outputs indices"
