"""What is observed of maps, against NumPy on all values at once."""

from collections.abc import Sequence
from math import ceil

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from exporters.precision.observe import BINS, Activation, observe, runs
from fcn_deploy.errors import ParityError
from tests.exporters.passes.graphs import parsed, run_exactly, weights

STRIDE = 7

# Float32 of any magnitude; most of what a ReLU gives are zeros.
VALUES = st.one_of(
    st.just(0.0), *(st.floats(-most, most, width=32, allow_subnormal=False) for most in (100.0, 2.0**99))
)
MAPS = st.lists(arrays(np.float32, st.integers(1, 40), elements=VALUES), min_size=1, max_size=6)
TWO_LAYERS = "c = Conv<pads=[1,1,1,1]>(image, w, b) r = Relu(c) d = Conv(r, v)"


def observed(maps: Sequence[np.ndarray]) -> Activation:
    found = Activation()
    for values in maps:
        found.add(values)
    return found


def two_layers(*, outputs: str = "float[2,2,6,7] d") -> ir.Model:
    given = {"w": weights(4, 3, 3, 3), "b": weights(4, 1, seed=1)[:, 0], "v": weights(2, 4, 1, 1, seed=2)}
    return parsed(TWO_LAYERS, "float[2,3,6,7] image", outputs, **given)


def images(count: int) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(3)
    return [{"image": rng.normal(0, 50, (2, 3, 6, 7)).astype(np.float32)} for _ in range(count)]


@given(MAPS)
def test_extremes_are_those_of_all_values(maps: list[np.ndarray]) -> None:
    found, everything = observed(maps), np.concatenate(maps)

    assert (found.low, found.high) == (everything.min(), everything.max())
    assert found.largest == np.abs(everything).max()


@given(MAPS)
def test_the_histogram_is_that_of_every_seventh_value_at_once(maps: list[np.ndarray]) -> None:
    found = observed(maps)
    strided = np.concatenate([np.abs(values[::STRIDE]) for values in maps]).astype(np.float64)

    expected, _ = np.histogram(strided, BINS, (0, BINS * found.width or 1))

    np.testing.assert_array_equal(found.counts, expected)


@given(MAPS.flatmap(lambda maps: st.tuples(st.just(maps), st.permutations(maps))))
def test_the_order_of_the_images_does_not_matter(maps: tuple[list[np.ndarray], list[np.ndarray]]) -> None:
    one, other = observed(maps[0]), observed(maps[1])

    assert one.width == other.width
    np.testing.assert_array_equal(one.counts, other.counts)


@given(MAPS)
def test_bins_are_as_narrow_as_powers_of_two_allow(maps: list[np.ndarray]) -> None:
    found = observed(maps)
    if found.largest == 0:
        assert found.width == 0
        return

    assert found.largest < BINS * found.width <= 2 * found.largest
    assert np.frexp(found.width)[0] == 0.5


def test_a_map_of_zeros_before_another_is_counted() -> None:
    found = observed([np.zeros(70, np.float32), np.ones(7, np.float32)])

    assert found.counts[0] == 10
    assert found.counts.sum() == 11


def test_values_near_the_smallest_float_have_bins_too() -> None:
    found = observed([np.full(7, 1e-45, np.float32)])

    assert found.counts.sum() == 1
    assert found.largest < BINS * found.width


def test_maps_are_those_the_graph_makes() -> None:
    every = two_layers(outputs="float[2,4,6,7] c, float[2,4,6,7] r, float[2,2,6,7] d")
    made = [run_exactly(every, feed) for feed in images(2)]

    found = observe(two_layers(), ["c", "r", "d"], images(2))

    for name, *values in zip(("c", "r", "d"), *made, strict=True):
        assert found[name].low == pytest.approx(min(v.min() for v in values), rel=1e-4)
        assert found[name].high == pytest.approx(max(v.max() for v in values), rel=1e-4)
        assert found[name].counts.sum() == 2 * ceil(values[0].size / STRIDE)


def test_maps_beyond_the_memory_of_one_session_take_further_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    model, names = two_layers(), ["c", "r", "d"]
    at_once = observe(model, names, images(2))
    monkeypatch.setattr("exporters.precision.observe._CHUNK_BYTES", 2 * 2 * 4 * 6 * 7 * 4)  # c and r
    done: list[None] = []

    found = observe(model, names, images(2), lambda: done.append(None))

    assert runs(model, names) == 2
    assert len(done) == 4
    assert {name: (a.low, a.high, a.width) for name, a in found.items()} == {
        name: (a.low, a.high, a.width) for name, a in at_once.items()
    }


def test_the_model_is_left_as_it_was() -> None:
    model = two_layers()
    before = ir.to_proto(model).SerializeToString()

    observe(model, ["r"], images(1))

    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize("value", [np.inf, -np.inf, np.nan])
def test_a_map_that_is_not_finite_is_refused_by_name(value: float) -> None:
    feed = images(1)[0]
    feed["image"][0, 0, 3, 3] = value

    with pytest.raises(ParityError, match=r"^c .*infinit"):
        observe(two_layers(), ["c"], [feed])
