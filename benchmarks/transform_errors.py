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

from exporters.passes.toom_cook import ACROSS, DOWN, ToomCook, Transform

HEADINGS = ("transform", "points besides infinity", "multiplications saved", "relative L2 error", "times direct")
TILES_PER_CASE, CHANNELS, FILTERS = 200, 128, 8
# Points that are usual elsewhere, and larger tiles, by outputs and taps.
ALTERNATIVES = {
    (4, 3): ("0 1 -1 2 -2", "0 1 -1 1/2 -1/2"),
    (5, 3): ("0 4/7 -4/7 8/7 -8/7 8/3", "0 1 -1 1/2 -1/2 2"),
    (6, 3): ("0 1 -1 2 -2 1/2 -1/2", "0 1 -1 2 -2 3 -3"),
    (2, 7): ("0 1 -1 2 -2 1/2 -1/2",),
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


def errors(down: Transform, across: Transform) -> tuple[float, float]:
    """Return the relative L2 errors of the convolution by transforms, and of the direct sum, both in float32."""
    rng, taps, outputs = np.random.default_rng(0), down.taps, down.outputs
    window = taps + outputs - 1
    tiles = rng.standard_normal((TILES_PER_CASE, CHANNELS, window, window))
    maps = np.maximum(tiles + 0.5, 0).astype(np.float32)
    shape = (FILTERS, CHANNELS, taps, taps)
    weights = (rng.standard_normal(shape) / np.sqrt(CHANNELS * taps**2)).astype(np.float32)
    exact = _direct(maps.astype(np.float64), weights.astype(np.float64), outputs)
    return _relative(_fast(maps, weights, down, across), exact), _relative(_direct(maps, weights, outputs), exact)


def _fast(
    maps: npt.NDArray[np.float32], weights: npt.NDArray[np.float32], down: Transform, across: Transform
) -> npt.NDArray[np.float32]:
    kernel = np.einsum("nr,kcrs,ms->kcnm", down.weight_transform, weights, across.weight_transform).astype(np.float32)
    given = down.input_transform.astype(np.float32) @ maps @ across.input_transform.astype(np.float32).T
    products = np.einsum("kcnm,tcnm->tknm", kernel, given)
    made = down.output_transform.astype(np.float32) @ products @ across.output_transform.astype(np.float32).T
    return np.asarray(made)


def _direct(maps: npt.NDArray[np.floating], weights: npt.NDArray[np.floating], size: int) -> npt.NDArray[np.floating]:
    total = np.zeros((len(maps), len(weights), size, size), maps.dtype)
    for row, column in np.ndindex(*weights.shape[2:]):
        window = maps[:, :, row : row + size, column : column + size]
        total += np.einsum("tcij,kc->tkij", window, weights[:, :, row, column])
    return total


def _relative(found: npt.NDArray[np.floating], exact: npt.NDArray[np.floating]) -> float:
    return float(np.linalg.norm(found - exact) / np.linalg.norm(exact))


def _cases() -> Sequence[tuple[str, str, Transform, Transform]]:
    """Return name, points, transforms down and across: those in use, then others."""
    found: list[tuple[str, str, Transform, Transform]] = []
    for taps, (down, across) in ((n, pair) for n in DOWN for pair in zip(DOWN[n], ACROSS[n], strict=True)):
        split = "" if down == across else ", split across into 4 and 3 taps"
        points = ", ".join(map(str, down.points)) if isinstance(down, ToomCook) else ""
        found.append((f"**F({down.outputs}, {taps})**{split}", points, down, across))
    for (outputs, taps), sets in ALTERNATIVES.items():
        for points in sets:
            other = OtherPoints(outputs, taps, tuple(map(Fraction, points.split())))
            found.append((f"F({outputs}, {taps})", ", ".join(points.split()), other, other))
    return found


def main() -> None:
    """Print the errors of the transforms in use, in bold, and of others."""
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for name, points, down, across in _cases():
        fast, direct = errors(down, across)
        saved = (down.outputs * down.taps) ** 2 / (down.products * across.products)
        print(f"| {name} | {points} | {saved:.2f} | {fast:.1e} | {fast / direct:.1f} |")


if __name__ == "__main__":
    main()
