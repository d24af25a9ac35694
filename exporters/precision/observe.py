"""The maps of a graph: the layer of each, the histogram of its values on real images, and its clipping threshold.

Values are counted in a streamed histogram, so that memory does not grow with the number of images.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import frexp, prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporters.passes.edit import only_reader
from fcn_deploy.choices import Calibration
from fcn_deploy.errors import ParityError
from fcn_deploy.graph import prefix, static_shape
from fcn_deploy.runtime.run_graph import open_graph

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
BINS = 2048
# Histograms count every 7th value, extremes every one: a map of 500x500 has tens of millions.
_STRIDE = 7
# Size of the maps that are outputs of one session.
_CHUNK_BYTES = 400e6
# Share of the values that percentile calibration keeps (the default of ONNX Runtime's static quantization).
PERCENTILE = 99.999
_QUANTIZED_BINS = 128
# Behind the last of these, a network's maps are scores. A Sigmoid weighs maps, or ends a network: it is none of them.
ACTIVATIONS = frozenset(
    {
        "Relu",
        "Clip",
        "LeakyRelu",
        "PRelu",
        "HardSwish",
        "Elu",
        "Selu",
        "Celu",
        "Gelu",
        "Mish",
        "Swish",
        "Erf",
    }
)
_STEP = 16


@dataclass
class Activation:
    """The values of one map over all images."""

    low: float = float("inf")  # the smallest value
    high: float = float("-inf")  # the largest
    width: float = 0.0  # of a bin of the histogram; a power of two
    # values by magnitude, `BINS` bins from 0 upwards
    counts: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(BINS, np.int64))

    @property
    def largest(self) -> float:
        """Return the largest magnitude."""
        return max(abs(self.low), abs(self.high))

    def add(self, values: Array) -> None:
        """Add the values of the map from one run."""
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
    model: ir.Model, names: Sequence[str], feeds: Feeds, on_run: Callable[[], None] = lambda: None
) -> dict[str, Activation]:
    """Run `model` on every feed and count the values of the maps called `names`, of float32 and fixed shapes.

    `on_run` is called after each of the `runs(model, names) * len(feeds)` runs.

    Raises:
        ParityError: a map holds infinities or NaN.
    """
    found = {name: Activation() for name in names}
    for chunk in _chunks(model, names):
        with open_graph(prefix(model, chunk)) as runner:
            for feed in feeds:
                for name, values in runner.run(feed).items():
                    _check_finite(name, values)
                    found[name].add(values)
                on_run()
    return found


def _check_finite(name: str, values: Array) -> None:
    # Both are NaN if any value is.
    if not np.isfinite([values.min(), values.max()]).all():
        raise ParityError(
            f"{name} has infinities or NaN already in float32",
            remedy="Check the weights and the calibration images.",
        )


def runs(model: ir.Model, names: Sequence[str]) -> int:
    """Return how many runs `observe` takes for a feed."""
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


def threshold(found: Activation, method: Calibration) -> float:
    """Return the magnitude beyond which values are clipped; 0 for a map that is all zeros."""
    if method is Calibration.MINMAX or found.largest == 0:
        return found.largest
    chosen = _percentile(found.counts) if method is Calibration.PERCENTILE else _entropy(found.counts)
    return min(found.largest, chosen * found.width)


def _percentile(counts: npt.NDArray[np.int64]) -> int:
    """Return the fewest bins that hold `PERCENTILE` of all values."""
    return int(np.searchsorted(counts.cumsum(), counts.sum() * PERCENTILE / 100)) + 1


def _entropy(counts: npt.NDArray[np.int64]) -> int:
    """Return the number of bins to keep, after Migacz, "8-bit inference with TensorRT", GTC 2017, slides 36 to 38.

    Zeros do not count: most outputs of a ReLU are zeros, and they fit any scale.
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
    # Values outside the kept range count in full, as if their probability were negligible.
    return float((p * np.log(p / q)).sum() + lost * np.log(1e12))


def trunk_convolutions(model: ir.Model) -> Iterator[ir.Node]:
    """Return the convolutions of constant weights that an activation follows, at once or later, in order."""
    trunk = before_activations(model)
    return (node for node in model.graph if node.op_type == "Conv" and node in trunk and _has_weights(node))


def before_activations(model: ir.Model) -> set[ir.Node]:
    """Return the nodes that an activation follows, at once or later. All others make scores of its last maps."""
    found: set[ir.Node] = set()
    for node in reversed(model.graph):
        readers = [use.node for output in node.outputs for use in output.uses()]
        if any(reader.op_type in ACTIVATIONS or reader in found for reader in readers):
            found.add(node)
    return found


def _has_weights(node: ir.Node) -> bool:
    return ir.convenience.get_const_tensor(node.inputs[1]) is not None if node.inputs[1] is not None else False


def activation_of(convolution: ir.Node) -> ir.Value:
    """Return the output of the Relu that alone follows a convolution, or else the convolution's own."""
    relu = _relu_behind(convolution)
    return (relu or convolution).outputs[0]


def _relu_behind(node: ir.Node) -> ir.Node | None:
    reader = only_reader(node.outputs[0])
    if reader is not None and reader.op_type == "MaxPool":
        return _relu_behind(reader)
    return reader if reader is not None and reader.op_type == "Relu" else None


def source_of(value: ir.Value | None) -> ir.Value:
    """Return the map whose values `value` holds, followed back over pools, slices and surrounding constants."""
    if value is None:
        raise ValueError("a node without its first input")
    node = value.producer()
    before = rearranged_input(node) if node is not None else None
    return value if before is None else source_of(before)


def rearranged_input(node: ir.Node) -> ir.Value | None:
    """Return the map whose values a node only moves, possibly surrounded by constants; None if it does more.

    A Concat of several maps is a new map: they need not have one scale.
    """
    if node.op_type in ("MaxPool", "Slice"):
        return node.inputs[0]
    maps = [value for value in node.inputs if value is not None and not is_constant(value)]
    return maps[0] if node.op_type == "Concat" and len(maps) == 1 else None


def is_constant(value: ir.Value) -> bool:
    """Return whether a value is an initializer, or an expanded one."""
    node = value.producer()
    source = node.inputs[0] if node is not None and node.op_type == "Expand" else None
    return value.is_initializer() or (source is not None and is_constant(source))
