from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from exporters.passes.cost import MACHINES, Machine
from exporters.passes.edit import RewriteResult
from exporters.passes.fold_crop import FoldCrop
from exporters.passes.upsample import Upsample, convolution_weight, is_diagonal
from fcn_deploy.choices import Target
from tests.exporters.passes.graphs import LAZY, THRIFTY, as_double, operators, parsed, run, run_exactly, weights, worst

# Here a transposed convolution is what costs.
SCATTERS_SLOWLY = Machine(1e30, 1.0, 4, 0.0, 1, 100, False, True, "made up")
INTERLEAVED = ["Conv", "Reshape", "Transpose", "Reshape", "Transpose", "Reshape"]
IN, OUT = "float[2,3,5,4] x", "float[2,3,H,W] y"
X = {"x": np.random.default_rng(3).normal(0, 1, (2, 3, 5, 4)).astype(np.float32)}


def upsampled(model: ir.Model, machine: Machine = SCATTERS_SLOWLY) -> tuple[ir.Model, RewriteResult]:
    copy = model.clone()
    result = Upsample(machine)(copy)
    assert isinstance(result, RewriteResult)
    return copy, result


def diagonal(channels: int, kernel: int) -> np.ndarray:
    dense = np.zeros((channels, channels, kernel, kernel), np.float32)
    dense[range(channels), range(channels)] = weights(channels, kernel, kernel)
    return dense


@given(st.integers(1, 4), st.integers(1, 3), st.integers(2, 5), st.integers(1, 4), st.integers(1, 4))
def test_the_sums_are_those_of_the_definition(cin: int, cout: int, stride: int, height: int, width: int) -> None:
    """Against stamping the kernel onto the output, cell by cell, in float64."""
    rng = np.random.default_rng(cin + 10 * cout)
    kernel, x = rng.normal(size=(cin, cout, 2 * stride, 2 * stride)), rng.normal(size=(cin, height, width))
    stamped = np.zeros((cout, stride * (height + 1), stride * (width + 1)))
    for i in range(height):
        for j in range(width):
            rows, columns = slice(i * stride, (i + 2) * stride), slice(j * stride, (j + 2) * stride)
            stamped[:, rows, columns] += np.einsum("c,cohw->ohw", x[:, i, j], kernel)

    taps = convolution_weight(kernel, stride, diagonal=False)
    padded = np.pad(x, ((0, 0), (1, 1), (1, 1)))
    cells = sum(
        np.einsum("oc,chw->ohw", taps[:, :, r, c], padded[:, r : r + height + 1, c : c + width + 1])
        for r in range(2)
        for c in range(2)
    )
    shuffled = np.asarray(cells).reshape(cout, stride, stride, height + 1, width + 1).transpose(0, 3, 1, 4, 2)

    assert np.abs(shuffled.reshape(stamped.shape) - stamped).max() < 1e-12


@pytest.mark.parametrize(("body", "kernel", "expected"), [
    ("y = ConvTranspose<strides=[4,4]>(x, w)", weights(3, 3, 8, 8), INTERLEAVED),
    ("y = ConvTranspose<strides=[4,4]>(x, w, b)", weights(3, 3, 8, 8), INTERLEAVED),
    ("y = ConvTranspose<strides=[2,2], pads=[1,0,1,2]>(x, w)", weights(3, 3, 4, 4), [*INTERLEAVED, "Slice"]),
    ("t = ConvTranspose<strides=[2,2], pads=[1,1,1,1]>(x, w) y = Slice(t, s, e, a)", weights(3, 3, 4, 4),
     [*INTERLEAVED, "Slice"]),
    ("y = ConvTranspose<strides=[4,4]>(x, w)", diagonal(3, 8), INTERLEAVED),
])  # fmt: skip
def test_what_becomes_a_convolution(tmp_path: Path, body: str, kernel: np.ndarray, expected: list[str]) -> None:
    arrays = {"w": kernel, "b": np.array([0.5, -1, 2], np.float32), "s": np.array([2, 1]), "e": np.array([9, 7])}
    plain = parsed(body, IN, OUT, **arrays, a=np.array([2, 3]))

    fast, result = upsampled(plain)

    assert [site.applied for site in result.sites] == [True]
    assert operators(fast) == expected
    assert [v.name for v in fast.graph.outputs] == ["y"]
    assert worst(run(plain, tmp_path, X), run(fast, tmp_path, X)) < 1e-6
    double = {"x": X["x"].astype(np.float64)}
    assert worst(run_exactly(as_double(plain), double), run_exactly(upsampled(as_double(plain))[0], double)) < 1e-12
    assert not upsampled(fast)[1].modified


def test_a_diagonal_kernel_gets_groups_where_scattering_is_cheap(tmp_path: Path) -> None:
    plain = parsed("y = ConvTranspose<strides=[4,4]>(x, w)", IN, OUT, w=diagonal(3, 8))

    fast, result = upsampled(plain, LAZY)

    assert result.sites[0].reason == "diagonal: 3 groups"
    (node,) = fast.graph
    assert (node.op_type, node.attributes["group"].value) == ("ConvTranspose", 3)
    assert worst(run(plain, tmp_path, X), run(fast, tmp_path, X)) < 1e-6
    assert not upsampled(fast, LAZY)[1].modified


@pytest.mark.parametrize(("attributes", "kernel", "reason"), [
    ("strides=[4,4]", weights(3, 3, 6, 6), "kernel 6x6 is not twice its stride 4"),
    ("strides=[4,2]", weights(3, 3, 8, 8), "kernel 8x8 is not twice its stride 0"),
    ("strides=[1,1]", weights(3, 3, 2, 2), "kernel 2x2 is not twice its stride 1"),
    ("strides=[4,4], group=3", weights(3, 1, 8, 8), "it has groups, dilations or padding of its output"),
    ("strides=[4,4], output_padding=[1,0]", weights(3, 3, 8, 8), "it has groups, dilations or padding of its output"),
    ("strides=[4,4], dilations=[2,1]", weights(3, 3, 8, 8), "it has groups, dilations or padding of its output"),
])  # fmt: skip
def test_what_is_refused(attributes: str, kernel: np.ndarray, reason: str) -> None:
    plain = parsed(f"y = ConvTranspose<{attributes}>(x, w)", IN, OUT, w=kernel)

    _, result = upsampled(plain)

    assert [(site.node, site.applied, site.reason) for site in result.sites] == [("y", False, reason)]


def test_weights_that_are_not_constant_are_refused() -> None:
    plain = parsed("y = ConvTranspose<strides=[2,2]>(x, w)", f"{IN}, float[3,3,4,4] w", OUT)

    assert upsampled(plain)[1].sites[0].reason == "weights or shapes are not constant"


def test_the_cost_decides_and_is_named() -> None:
    plain = parsed("y = ConvTranspose<strides=[2,2]>(x, w)", IN, OUT, w=weights(3, 3, 4, 4))

    assert "takes longer" in upsampled(plain, MACHINES[Target.CUDA])[1].sites[0].reason


@pytest.mark.parametrize(("kernel", "expected"), [
    (diagonal(3, 4), True), (weights(3, 3, 4, 4), False), (weights(1, 1, 4, 4), False), (weights(2, 3, 4, 4), False),
    (diagonal(3, 4) + np.float32(1e-30), False),
])  # fmt: skip
def test_diagonal_means_exactly(kernel: np.ndarray, expected: bool) -> None:
    assert is_diagonal(kernel) == expected


CROP = {"s": np.array([9, 6]), "e": np.array([17, 14]), "a": np.array([2, 3])}


@pytest.mark.parametrize(("body", "arrays", "expected"), [
    ("t = ConvTranspose<strides=[4,4]>(x, w) y = Slice(t, s, e, a)", {"w": weights(3, 3, 8, 8)},
     ["Slice", "ConvTranspose", "Slice"]),
    ("t = ConvTranspose<strides=[4,4], pads=[1,2,0,1]>(x, w) y = Slice(t, s, e, a)", {"w": weights(3, 3, 8, 8)},
     ["Slice", "ConvTranspose"]),
    ("t = ConvTranspose<strides=[3,4], group=3>(x, w) y = Slice(t, s, e, a)", {"w": weights(3, 1, 5, 9)},
     ["Slice", "ConvTranspose", "Slice"]),
])  # fmt: skip
def test_cells_that_cannot_reach_a_crop_are_cut_off(
    tmp_path: Path, body: str, arrays: dict[str, np.ndarray], expected: list[str]
) -> None:
    plain = parsed(body, IN, OUT, **arrays, **CROP)
    fast = plain.clone()

    result = FoldCrop(THRIFTY)(fast)

    assert result.modified
    assert sorted(operators(fast)) == sorted(expected)
    assert worst(run(plain, tmp_path, X), run(fast, tmp_path, X)) < 1e-6
    assert not FoldCrop(THRIFTY)(fast).modified


@dataclass(frozen=True)
class Cropped:
    """A transposed convolution of equal sides, and a crop behind it."""

    cells: int
    stride: int
    kernel: int
    begin: int
    end: int
    first: int
    size: int

    @property
    def is_possible(self) -> bool:
        full = self.stride * (self.cells - 1) + self.kernel - self.begin - self.end
        return self.first + self.size <= full

    def model(self) -> ir.Model:
        pads = [self.begin, self.begin, self.end, self.end]
        body = f"t = ConvTranspose<strides=[{self.stride},{self.stride}], pads={pads}>(x, w) y = Slice(t, s, e, a)"
        starts, ends = np.array([self.first] * 2), np.array([self.first + self.size] * 2)
        given = f"float[1,2,{self.cells},{self.cells}] x"
        arrays = {"w": weights(2, 2, self.kernel, self.kernel), "s": starts, "e": ends, "a": np.array([2, 3])}
        return parsed(body, given, "float[1,2,H,W] y", **arrays)


SMALL = st.integers(0, 4)
CROPPED = st.builds(
    Cropped, st.integers(1, 6), st.integers(2, 5), st.integers(1, 9), SMALL, SMALL,
    st.integers(0, 40), st.integers(1, 40),
).filter(lambda one: one.is_possible)  # fmt: skip


@settings(deadline=None)
@given(CROPPED, st.sampled_from([THRIFTY, SCATTERS_SLOWLY]))
def test_any_crop_folds_right(one: Cropped, machine: Machine) -> None:
    plain = one.model()
    fast, x = plain.clone(), {"x": np.random.default_rng(one.cells).normal(size=(1, 2, one.cells, one.cells))}

    FoldCrop(machine)(fast)

    assert worst(run_exactly(as_double(plain), x), run_exactly(as_double(fast), x)) < 1e-12
    assert not FoldCrop(machine)(fast).modified


def test_a_crop_moves_in_front_of_a_1x1_convolution_where_that_saves(tmp_path: Path) -> None:
    plain = parsed(
        "t = Conv(x, w, b) y = Slice(t, s, e, a)", "float[2,3,5,4] x", "float[2,2,H,W] y",
        w=weights(2, 3, 1, 1), b=np.array([1, -1], np.float32),
        s=np.array([1, 1]), e=np.array([3, 2]), a=np.array([2, 3]),
    )  # fmt: skip
    fast = plain.clone()

    result = FoldCrop(THRIFTY)(fast)

    assert isinstance(result, RewriteResult)
    assert result.sites[0].reason == "before t"
    assert operators(fast) == ["Slice", "Conv"]
    assert worst(run(plain, tmp_path, X), run(fast, tmp_path, X)) < 1e-6


@pytest.mark.parametrize(("body", "reason"), [
    ("t = Conv(x, w) y = Slice(t, s, e, a)", "t is not a 1x1 convolution"),
    ("t = Conv(x, v) u = Slice(t, s, e, a) y = Pad(u, p) z = Relu(t)", "t has other readers, which need all of it"),
    ("t = ConvTranspose<strides=[2,2], dilations=[2,2]>(x, w) y = Slice(t, s, e, a)",
     "t has dilations, gaps between its cells, or unknown shapes"),
    ("t = ConvTranspose<strides=[1,1]>(x, w) y = Slice(t, s, e, a)",
     "every input cell reaches the crop, and more padding saves nothing on the target"),
])  # fmt: skip
def test_crops_that_stay_where_they_are(body: str, reason: str) -> None:
    outputs = "float[2,3,H,W] y" + (", float[2,3,P,Q] z" if "z =" in body else "")
    arrays = {"w": weights(3, 3, 2, 2), "v": weights(3, 3, 1, 1), "p": np.zeros(8, np.int64)}
    model = parsed(body, IN, outputs, **arrays, s=np.array([0, 0]), e=np.array([5, 4]), a=np.array([2, 3]))

    result = FoldCrop(SCATTERS_SLOWLY)(model)

    assert isinstance(result, RewriteResult)
    assert [(site.applied, site.reason) for site in result.sites] == [(False, reason)]
