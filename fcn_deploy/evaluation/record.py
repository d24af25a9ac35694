"""What is kept of a scored image: the pixel counts its scores are made of, and whose they are."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Self

import numpy as np

from fcn_deploy.metrics import Counts


@dataclass(frozen=True)
class Confusions:
    """Pixel counts of one image or of many, each K x K.

    Attributes:
        artifact: rows the truth, columns the artifact's labels.
        pytorch: rows the truth, columns PyTorch's labels; None where PyTorch did not label.
        both: rows PyTorch's labels, columns the artifact's, of all pixels, void ones too; None likewise.
    """

    artifact: Counts
    pytorch: Counts | None = None
    both: Counts | None = None

    def __add__(self, other: "Confusions") -> "Confusions":
        if self.pytorch is None or self.both is None or other.pytorch is None or other.both is None:
            return Confusions(self.artifact + other.artifact)
        return Confusions(self.artifact + other.artifact, self.pytorch + other.pytorch, self.both + other.both)

    @classmethod
    def none(cls, num_classes: int, *, pytorch: bool) -> "Confusions":
        """Of no pixel at all."""
        zeros = np.zeros((num_classes, num_classes), dtype=np.int64)
        return cls(zeros, zeros, zeros) if pytorch else cls(zeros)


@dataclass(frozen=True)
class ImageRecord:
    """One scored image.

    Attributes:
        name: of its pair.
        photo_sha256: of the photo's file.
        labels_sha256: of the label map's file.
        pixels: of the photo, void ones too.
        confusions: its pixel counts.
    """

    name: str
    photo_sha256: str
    labels_sha256: str
    pixels: int
    confusions: Confusions

    def to_dict(self) -> dict[str, Any]:
        """For a line of JSON: of each matrix the cells that are not zero, as pairs of position and count."""
        counts = {name: _sparse(matrix) for name, matrix in vars(self.confusions).items() if matrix is not None}
        return {**{name: value for name, value in vars(self).items() if name != "confusions"}, "counts": counts}

    @classmethod
    def from_dict(cls, facts: Mapping[str, Any], num_classes: int) -> Self:
        """Read back what `to_dict` wrote; raises KeyError, TypeError or ValueError where it did not."""
        counts = {name: _dense(cells, num_classes) for name, cells in facts["counts"].items()}
        names = str(facts["name"]), str(facts["photo_sha256"]), str(facts["labels_sha256"])
        return cls(*names, int(facts["pixels"]), Confusions(**counts))


def _sparse(counts: Counts) -> list[list[int]]:
    flat = counts.ravel()
    return [[int(cell), int(flat[cell])] for cell in np.flatnonzero(flat)]


def _dense(cells: list[list[int]], num_classes: int) -> Counts:
    flat = np.zeros(num_classes**2, dtype=np.int64)
    for cell, count in cells:
        if not 0 <= cell < flat.size:
            raise ValueError(f"cell {cell} of {flat.size}")
        flat[cell] = count
    return flat.reshape(num_classes, num_classes)
