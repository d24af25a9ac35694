"""The matrices of fast convolutions: Toom-Cook's algorithm, in exact fractions.

m outputs of a correlation with r taps take n = m + r - 1 products instead of m r:

    y = A^T [ (G g) * (B^T d) ]        d: n inputs, g: r taps, y: m outputs

The polynomials of taps and outputs are evaluated at n - 1 points and at infinity; B^T is the transpose of their
interpolation (Winograd, Arithmetic Complexity of Computations, 1980; Lavin and Gray, Fast Algorithms for Convolutional
Neural Networks, 2016). In two dimensions each axis is transformed by itself.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from functools import cached_property

import numpy as np
import numpy.typing as npt

Matrix = npt.NDArray[np.float64]

# Points besides infinity by their number. Of the symmetric sets with numerators and denominators up to 8 these have the
# least error in float32, or are as good and exact in binary (docs/fast-convolution.md has the errors and the command).
_POINTS = {
    3: ("0", "1", "-1"),
    4: ("0", "1", "-1", "2"),
    5: ("0", "5/8", "-5/8", "3/2", "-3/2"),
    7: ("0", "1", "-1", "2", "-2", "1/2", "-1/2"),
}


@dataclass(frozen=True)
class ToomCook:
    """F(outputs, taps): the transforms along one axis."""

    outputs: int
    taps: int

    @property
    def products(self) -> int:
        """Return how many inputs a tile reads, and products it takes."""
        return self.outputs + self.taps - 1

    @cached_property
    def points(self) -> tuple[Fraction, ...]:
        """Return the finite points."""
        return tuple(map(Fraction, _POINTS[self.products - 1]))

    @cached_property
    def input_transform(self) -> Matrix:
        """Return B^T, products x products."""
        rows = [_polynomial(p for p in self.points if p is not point) for point in self.points]
        return _floats([*((*row, Fraction(0)) for row in rows), _polynomial(self.points)])

    @cached_property
    def weight_transform(self) -> Matrix:
        """Return G, products x taps."""
        rows = []
        for point in self.points:
            scale = Fraction(1)
            for other in self.points:
                scale *= point - other if other is not point else 1
            rows.append([point**k / scale for k in range(self.taps)])
        return _floats([*rows, _last(self.taps)])

    @cached_property
    def output_transform(self) -> Matrix:
        """Return A^T, outputs x products."""
        columns = [[point**i for i in range(self.outputs)] for point in self.points]
        return _floats([*columns, _last(self.outputs)]).T


@dataclass(frozen=True)
class SplitToomCook:
    """Groups of neighbouring taps, each with transforms of its own: more products, and much smaller errors."""

    outputs: int
    groups: tuple[int, ...]  # taps of each

    @property
    def taps(self) -> int:
        """Return how many taps there are in all."""
        return sum(self.groups)

    @property
    def products(self) -> int:
        """Return how many products a tile takes."""
        return sum(part.products for part in self._parts)

    @property
    def _parts(self) -> list[ToomCook]:
        return [ToomCook(self.outputs, taps) for taps in self.groups]

    @cached_property
    def input_transform(self) -> Matrix:
        """Return B^T, products x inputs of a tile: each group reads its own part of the tile."""
        return self._placed([part.input_transform for part in self._parts], self.outputs + self.taps - 1)

    @cached_property
    def weight_transform(self) -> Matrix:
        """Return G, products x taps."""
        return self._placed([part.weight_transform for part in self._parts], self.taps)

    @cached_property
    def output_transform(self) -> Matrix:
        """Return A^T, outputs x products: the groups are added up."""
        return np.hstack([part.output_transform for part in self._parts])

    def _placed(self, blocks: Sequence[Matrix], width: int) -> Matrix:
        """Put each block below the ones before, and as far to the right as there are taps in the groups before."""
        found, row, tap = np.zeros((self.products, width)), 0, 0
        for block, taps in zip(blocks, self.groups, strict=True):
            found[row : row + len(block), tap : tap + block.shape[1]] = block
            row, tap = row + len(block), tap + taps
        return found


Transform = ToomCook | SplitToomCook
# The transforms down and across, by the number of taps. Larger tiles take fewer products, but their errors exceed those
# of the direct sum too far: F(6, 3) has 18 times its error, F(4, 3) has 4 times. F(2, 7) has 19 times in both
# directions; split across, it has 8 times, for an eighth more products.
DOWN: Mapping[int, tuple[Transform, ...]] = {
    3: (ToomCook(2, 3), ToomCook(4, 3)),
    5: (ToomCook(2, 5),),
    7: (ToomCook(2, 7),),
}
ACROSS: Mapping[int, tuple[Transform, ...]] = {**DOWN, 7: (SplitToomCook(2, (4, 3)),)}


def _polynomial(roots: Iterable[Fraction]) -> list[Fraction]:
    """Return the coefficients of the product of (x - root), lowest power first."""
    found = [Fraction(1)]
    for root in roots:
        shifted, scaled = [Fraction(0), *found], [*(root * c for c in found), Fraction(0)]
        found = [one - other for one, other in zip(shifted, scaled, strict=True)]
    return found


def _last(size: int) -> list[Fraction]:
    return [Fraction(int(k == size - 1)) for k in range(size)]


def _floats(rows: Sequence[Sequence[Fraction]]) -> Matrix:
    return np.array([[float(x) for x in row] for row in rows])
