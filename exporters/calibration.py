"""How far a map's values are kept when they are rounded to 8 bits: one threshold from a histogram of magnitudes."""

import numpy as np
import numpy.typing as npt

from exporters.activations import BINS, Activation
from exporters.calibration_method import Calibration

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
