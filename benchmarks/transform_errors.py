"""Measure the rounding errors of the transforms of fast convolutions, to choose their points by.

Run as `python -m benchmarks.transform_errors`; prints a Markdown table of every tiling and of its alternatives. Each
convolution is computed in float32, tile by tile, on maps as they are behind a ReLU, and compared with float64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

from exporters.passes.toom_cook import TILES, ToomCook

HEADINGS = ("transform", "points besides infinity", "multiplications saved", "relative L2 error", "times direct")
TILES_PER_CASE, CHANNELS, FILTERS = 200, 128, 8
# Points that are usual elsewhere, and larger tiles, by outputs and taps.
ALTERNATIVES = {
    (4, 3): ("0 1 -1 2 -2", "0 1 -1 1/2 -1/2"),
    (5, 3): ("0 4/7 -4/7 8/7 -8/7 8/3", "0 1 -1 1/2 -1/2 2"),
    (6, 3): ("0 1 -1 2 -2 1/2 -1/2", "0 1 -1 2 -2 3 -3"),
    (3, 7): ("5/7 -5/7 7/6 -7/6 3/8 -3/8 7/3 -7/3",),
}


@dataclass(frozen=True)
class OtherPoints(ToomCook):
    """The transforms of other points."""

    chosen: tuple[Fraction, ...] = ()

    @cached_property
    def points(self) -> tuple[Fraction, ...]:
        """Return the finite points."""
        return self.chosen


def errors(transform: ToomCook) -> tuple[float, float]:
    """Return the relative L2 errors of the convolution by transforms, and of the direct sum, both in float32."""
    rng, taps, outputs = np.random.default_rng(0), transform.taps, transform.outputs
    tiles = rng.standard_normal((TILES_PER_CASE, CHANNELS, transform.products, transform.products))
    maps = np.maximum(tiles + 0.5, 0).astype(np.float32)
    shape = (FILTERS, CHANNELS, taps, taps)
    weights = (rng.standard_normal(shape) / np.sqrt(CHANNELS * taps**2)).astype(np.float32)
    exact = _direct(maps.astype(np.float64), weights.astype(np.float64), outputs)
    return _relative(_fast(maps, weights, transform), exact), _relative(_direct(maps, weights, outputs), exact)


def _fast(maps: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], by: ToomCook) -> npt.NDArray[np.float32]:
    given, taken = by.input_transform.astype(np.float32), by.output_transform.astype(np.float32)
    kernel = np.einsum("nr,kcrs,ms->kcnm", by.weight_transform, weights, by.weight_transform).astype(np.float32)
    products = np.einsum("kcnm,tcnm->tknm", kernel, given @ maps @ given.T)
    made: npt.NDArray[np.float32] = taken @ products @ taken.T
    return made


def _direct(maps: npt.NDArray[np.floating], weights: npt.NDArray[np.floating], size: int) -> npt.NDArray[np.floating]:
    total = np.zeros((len(maps), len(weights), size, size), maps.dtype)
    for row, column in np.ndindex(*weights.shape[2:]):
        window = maps[:, :, row : row + size, column : column + size]
        total += np.einsum("tcij,kc->tkij", window, weights[:, :, row, column])
    return total


def _relative(found: npt.NDArray[np.floating], exact: npt.NDArray[np.floating]) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _cases() -> Sequence[tuple[ToomCook, str]]:
    used = [(ToomCook(outputs, taps), "used") for taps, tiles in TILES.items() for outputs in tiles]
    others = [
        (OtherPoints(outputs, taps, tuple(map(Fraction, points.split()))), "not used")
        for (outputs, taps), sets in ALTERNATIVES.items()
        for points in sets
    ]
    return [*used, *others]


def main() -> None:
    """Print the errors of the transforms in use, and of others."""
    print(f"| {' | '.join(HEADINGS)} | |\n|{'---|' * (len(HEADINGS) + 1)}")
    for transform, use in _cases():
        fast, direct = errors(transform)
        points = ", ".join(map(str, transform.points))
        saved = (transform.outputs * transform.taps / transform.products) ** 2
        name = f"F({transform.outputs}, {transform.taps})"
        print(f"| {name} | {points} | {saved:.2f} | {fast:.1e} | {fast / direct:.1f} | {use} |")


if __name__ == "__main__":
    main()
