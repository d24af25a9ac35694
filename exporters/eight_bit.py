"""Quantising a graph with proof: calibrate, rank layers by their noise, keep the worst in float until labels agree."""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import inf, log10
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporters.activations import BINS, Activation, observe, runs
from exporters.calibration_method import Calibration
from exporters.optimize import Target
from exporters.passes.static import constant
from exporters.quantize import Scale, map_names, map_scale, quantized, rounded_weights
from exporters.trunk import constants_beside, source_of, trunk_convolutions
from fcn_deploy.errors import ParityError, UsageError
from fcn_deploy.metrics import Scores, confusion_matrix
from fcn_deploy.model_info import MAX_CLASSES
from fcn_deploy.onnx_file import write_model
from fcn_deploy.runtime.ends import labels_of
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.steps import Advance, OnStep, quietly

# Calibration images that go along with the artifact: they take room, and time whenever it is verified.
GO_ALONG = 4

Array = npt.NDArray[Any]
Feeds = Sequence[Mapping[str, Array]]
Labels = npt.NDArray[np.uint8]
Attempted = tuple[ir.Model, float]
Attempt = Callable[[Collection[str]], Attempted]


@dataclass(frozen=True)
class LayerNoise:
    """What rounding one convolution's weights and input to 8 bits adds.

    Attributes:
        name: of the convolution.
        weights: noise over signal, both as sums of squares.
        input: likewise, of the map it reads.
        in_float: whether it was kept in float for it.
    """

    name: str
    weights: float
    input: float
    in_float: bool = False

    @property
    def sqnr_db(self) -> float:
        """Signal to quantisation noise of the layer's output, in decibels, as if the two noises were independent."""
        noise = self.weights + self.input
        return -10 * log10(noise) if noise > 0 else inf


@dataclass(frozen=True)
class Quantization:
    """What became of a graph in 8 bits.

    Attributes:
        method: how clipping thresholds were chosen.
        images: how many the maps were observed on.
        layers: the trunk's convolutions in order.
        mean_iu: between the labels of the float and of the 8-bit graph, over all calibration images or over the first
            `GO_ALONG`, whichever is less.
        min_agreement: the least that was asked for.
    """

    method: Calibration
    images: int
    layers: tuple[LayerNoise, ...]
    mean_iu: float
    min_agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        layers = [asdict(layer) | {"sqnr_db": layer.sqnr_db} for layer in self.layers]
        return asdict(self) | {"method": str(self.method), "layers": layers}


@dataclass(frozen=True)
class QuantizeOptions:
    """How to quantise.

    Attributes:
        method: how clipping thresholds are chosen.
        target: where the graph is to run, which decides the integers' type.
        min_agreement: least mean IU between the labels of the two graphs.
    """

    method: Calibration
    target: Target
    min_agreement: float


def quantize(
    model: ir.Model, feeds: Feeds, options: QuantizeOptions, on_step: OnStep = quietly
) -> tuple[ir.Model, Quantization]:
    """`model` with as many of its trunk's convolutions in 8 bits as agree with it; it is left as it was.

    Raises:
        UsageError: the graph has no trunk.
        ParityError: not even one layer in 8 bits agrees well enough.
    """
    if not any(trunk_convolutions(model)):
        raise UsageError(
            "no convolution is followed by a Relu alone, so there is no layer for 8 bits",
            remedy="Pass --precision fp16.",
        )
    parts = (runs(model, _inner_maps(model)) + 1) * len(feeds)
    with on_step(f"observe every layer on {len(feeds)} images", parts) as advance:
        observed = observe_maps(model, feeds, advance)
        expected = _labels(model, feeds, advance)
    scales = {name: map_scale(found, options.method, options.target) for name, found in observed.items()}
    noises = layer_noises(model, observed, scales)

    def attempt(layers: Collection[str]) -> Attempted:
        """The graph with those layers in 8 bits, and how well it agrees."""
        with on_step(f"8 bits in {len(layers)} of {len(noises)} layers, compare labels", len(feeds)) as advance:
            candidate = quantized(model, scales, set(layers))
            return candidate, _agreement(expected, _labels(candidate, feeds, advance))

    worst_first = [layer.name for layer in sorted(noises, key=lambda layer: layer.sqnr_db)]
    layers, (candidate, mean_iu) = _as_many(attempt, worst_first, options.min_agreement)
    if not mean_iu >= options.min_agreement:
        raise ParityError(
            f"8 bits in {layers[0]} alone leave a mean IU of {mean_iu:.4f} with the float graph, less than "
            f"{options.min_agreement:g}",
            remedy="Calibrate on images like those it is for, try another --calibration-method, or --precision fp16.",
        )
    marked = tuple(replace(layer, in_float=layer.name not in layers) for layer in noises)
    return candidate, Quantization(options.method, len(feeds), marked, mean_iu, options.min_agreement)


def _as_many(attempt: Attempt, worst_first: list[str], enough: float) -> tuple[list[str], Attempted]:
    """As many layers as agree well enough, or else the one that agrees best."""
    kept, found = _fewest(attempt, worst_first, enough)
    if not found[1] >= enough:
        # Noise does not say what labels hang on: where its order leads nowhere, every layer is tried by itself.
        alone = {name: attempt([name])[1] for name in worst_first}
        worst_first = sorted(worst_first, key=lambda name: alone[name])
        kept, found = _fewest(attempt, worst_first, enough)
    return worst_first[kept:], found


def _fewest(attempt: Attempt, worst_first: Sequence[str], enough: float) -> tuple[int, Attempted]:
    """The fewest layers to keep in float, by bisection, since each attempt runs every image; at most all but one."""
    low, high = 0, len(worst_first) - 1
    found = attempt(worst_first)
    if found[1] >= enough:
        return low, found
    best = attempt(worst_first[high:])
    while best[1] >= enough and high - low > 1:
        middle = (low + high) // 2
        found = attempt(worst_first[middle:])
        if found[1] >= enough:
            high, best = middle, found
        else:
            low = middle
    return high, best


def observe_maps(model: ir.Model, feeds: Feeds, advance: Advance = lambda: None) -> dict[str, Activation]:
    """Every map that needs a scale, with the constants put around it; the graph's own input is read off the feeds."""
    inputs = {str(value.name) for value in model.graph.inputs}
    found = observe(model, _inner_maps(model), feeds, advance)
    for name in inputs & set(map_names(model)):
        found[name] = Activation()
        for feed in feeds:
            found[name].add(feed[name])
    for source, beside in constants_beside(model):
        if source in found:
            found[source].add(beside)
    return found


def _inner_maps(model: ir.Model) -> list[str]:
    inputs = {str(value.name) for value in model.graph.inputs}
    return [name for name in map_names(model) if name not in inputs]


def layer_noises(model: ir.Model, observed: Mapping[str, Activation], scales: Mapping[str, Scale]) -> list[LayerNoise]:
    """The noise of every trunk convolution: of the weights exactly, of the input from its histogram."""
    found = []
    for node in trunk_convolutions(model):
        weight, source = constant(node.inputs[1]), str(source_of(node.inputs[0]).name)
        if weight is None:
            raise ValueError(f"{node.name} has no constant weights")
        integers, steps = rounded_weights(weight)
        error = weight - integers * steps.reshape(-1, *[1] * (weight.ndim - 1))
        share = float(np.square(error, dtype=np.float64).sum() / max(np.square(weight, dtype=np.float64).sum(), 1e-300))
        found.append(LayerNoise(str(node.name), share, input_noise(observed[source], scales[source])))
    return found


def input_noise(found: Activation, scale: Scale) -> float:
    """Noise over signal of a map.

    A twelfth of a squared step where a value fits (uniform rounding), and what is cut off where it does not.
    """
    centres = (np.arange(BINS) + 0.5) * found.width
    info = np.iinfo(scale.zero_point.dtype)
    reach = float(scale.scale) * max(info.max - int(scale.zero_point), int(scale.zero_point) - info.min)
    # The first bin holds the zeros a ReLU makes, which rounding leaves alone.
    rounding = np.where(np.arange(BINS) > 0, float(scale.scale) ** 2 / 12, 0)
    errors = np.where(centres > reach, (centres - reach) ** 2, rounding)
    signal = float((found.counts * centres**2).sum())
    return float((found.counts * errors).sum()) / signal if signal else 0.0


def _labels(model: ir.Model, feeds: Feeds, advance: Advance) -> list[Labels]:
    found = []
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        write_model(model, path)
        with OrtRunner(path) as runner:
            for feed in feeds:
                found.append(labels_of(runner.run(feed)))
                advance()
    return found


def _agreement(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """Mean IU over all images, or over the first few where that is less: by these the artifact is judged later on."""
    return min(_mean_iu(expected, found), _mean_iu(expected[:GO_ALONG], found[:GO_ALONG]))


def _mean_iu(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """Over all images together; a class that occurs nowhere does not count."""
    counts = sum(confusion_matrix(e, f, MAX_CLASSES) for e, f in zip(expected, found, strict=True))
    return Scores(np.asarray(counts)).mean_iu
