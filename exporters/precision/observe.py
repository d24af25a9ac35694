"""What the maps of a graph hold on real images: extremes and a histogram, streamed so that memory does not grow."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import frexp, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporters.passes.edit import static_shape
from fcn_deploy.choices import Calibration
from fcn_deploy.errors import ParityError
from fcn_deploy.graph import prefix
from fcn_deploy.runtime.run_graph import open_graph

Array = npt.NDArray[Any]

BINS = 2048
# Histograms count every so manieth value; extremes see all. A map of 500x500 has tens of millions.
_STRIDE = 7
# Maps given out by one session, so that a few hundred megabytes are held at a time.
_CHUNK_BYTES = 400e6


@dataclass
class Activation:
    """One map over all images.

    Attributes:
        low: the smallest value.
        high: the largest.
        width: of a bin of the histogram; a power of two.
        counts: values by magnitude, `BINS` bins from 0 upwards.
    """

    low: float = float("inf")
    high: float = float("-inf")
    width: float = 0.0
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def largest(self) -> float:
        """The largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def add(self, values: Array) -> None:
        """Take in the map of one more run."""
        self.low, self.high = min(self.low, float(values.min())), max(self.high, float(values.max()))
        if self.largest > 0:
            self._make_room()
        magnitudes = np.abs(values.ravel()[::_STRIDE])
        # As long as all values are 0 there is no width, and the first bin has them all. Tiny widths need float64.
        per_value = np.float64(1 / self.width if self.width else 0)
        self.counts += np.bincount((magnitudes * per_value).astype(np.int64), minlength=BINS)

    def _make_room(self) -> None:
        """Widen the bins, two by two, until the largest magnitude has one."""
        _, exponent = frexp(self.largest)  # the largest magnitude is below 2 ** exponent
        needed = 2.0**exponent / BINS
        if self.width == 0:
            self.width = needed
        while self.width < needed:
            pairs = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate([pairs, np.zeros_like(pairs)])
            self.width *= 2


def observe(
    model: ir.Model,
    names: Sequence[str],
    feeds: Sequence[Mapping[str, Array]],
    on_run: Callable[[], None] = lambda: None,
) -> dict[str, Activation]:
    """Run `model` on every feed and take in the maps called `names`.

    Args:
        model: left as it is.
        names: of values of float32 and fixed shapes.
        feeds: inputs by name.
        on_run: called after each run; there are `runs(model, names) * len(feeds)` of them.

    Raises:
        ParityError: a map holds infinities or what is no number.
    """
    found = {name: Activation() for name in names}
    for chunk in _chunks(model, names):
        with open_graph(prefix(model, chunk)) as runner:
            for feed in feeds:
                for name, values in runner.run(feed).items():
                    _require_numbers(name, values)
                    found[name].add(values)
                on_run()
    return found


def _require_numbers(name: str, values: Array) -> None:
    # Both are NaN if any value is.
    if not np.isfinite([values.min(), values.max()]).all():
        raise ParityError(
            f"{name} reaches infinity, or what is no number, in float32 already",
            remedy="Check the weights and the images it is observed on.",
        )


def runs(model: ir.Model, names: Sequence[str]) -> int:
    """How many runs `observe` takes for a feed."""
    return len(list(_chunks(model, names)))


def _chunks(model: ir.Model, names: Sequence[str]) -> Iterator[list[str]]:
    sizes = {v.name: 4 * prod(static_shape(v) or ()) for node in model.graph for v in node.outputs}
    chunk: list[str] = []
    for name in names:
        if chunk and sum(sizes[n] for n in chunk) + sizes[name] > _CHUNK_BYTES:
            yield chunk
            chunk = []
        chunk.append(name)
    if chunk:
        yield chunk


# What percentile calibration keeps (the default of ONNX Runtime's static quantisation).
PERCENTILE = 99.999
_QUANTIZED_BINS = 128
_STEP = 16


def threshold(found: Activation, method: Calibration) -> float:
    """The magnitude beyond which values are clipped; 0 for a map that is all zeros."""
    if method is Calibration.MINMAX or found.largest == 0:
        return found.largest
    chosen = _percentile(found.counts) if method is Calibration.PERCENTILE else _entropy(found.counts)
    return min(found.largest, chosen * found.width)


def _percentile(counts: npt.NDArray[np.int64]) -> int:
    """The fewest bins that hold `PERCENTILE` of all values."""
    return int(np.searchsorted(counts.cumsum(), counts.sum() * PERCENTILE / 100)) + 1


def _entropy(counts: npt.NDArray[np.int64]) -> int:
    """The number of bins to keep, after Migacz, "8-bit inference with TensorRT", GTC 2017, slides 36 to 38.

    Zeros, which are most of what a ReLU gives and fit any scale, do not count.
    """
    values = counts.astype(np.float64)
    values[0] = 0
    if values.sum() == 0:
        return BINS
    kept = range(_QUANTIZED_BINS, BINS + 1, _STEP)
    return min(kept, key=lambda bins: _divergence(values, bins))


def _divergence(counts: npt.NDArray[np.float64], bins: int) -> float:
    reference = counts[:bins].copy()
    reference[-1] += counts[bins:].sum()
    levels = np.arange(bins) * _QUANTIZED_BINS // bins
    filled = counts[:bins] > 0
    mass = np.bincount(levels, counts[:bins], _QUANTIZED_BINS)
    holders = np.bincount(levels, filled, _QUANTIZED_BINS)
    candidate = np.where(filled, mass[levels] / np.maximum(holders[levels], 1), 0)
    both = (reference > 0) & (candidate > 0)
    lost = reference[(reference > 0) & ~both].sum() / reference.sum()
    p, q = reference[both] / reference.sum(), candidate[both] / max(candidate.sum(), 1e-300)
    # What the kept range cannot stand for counts in full, as if its probability there were next to nothing.
    return float((p * np.log(p / q)).sum() + lost * np.log(1e12))
