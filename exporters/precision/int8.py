"""Verified quantization to 8 bits: calibrate, rank layers by noise, keep the worst in float until labels agree."""

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from itertools import islice
from math import inf, log10
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.passes.edit import Attribute, add_constant, constant, node_after, required_constant
from exporters.precision.observe import (
    BINS,
    Activation,
    Array,
    Feeds,
    activation_of,
    is_constant,
    observe,
    rearranged_input,
    runs,
    source_of,
    threshold,
    trunk_convolutions,
)
from fcn_deploy.choices import Calibration, Target
from fcn_deploy.errors import ParityError, UsageError
from fcn_deploy.graph import static_shape
from fcn_deploy.metrics import Scores, confusion_matrix
from fcn_deploy.model_info import MAX_CLASSES
from fcn_deploy.progress import Advance, OnStep, quietly
from fcn_deploy.runtime.base import labels_of
from fcn_deploy.runtime.run_graph import open_graph

# Number of calibration images that are bundled with the artifact; each adds to its size and to `verify`'s time.
BUNDLED_PHOTOS = 4
# Largest magnitude of a symmetric int8, and of uint8.
_SIGNED, _UNSIGNED = 127, 255
# Float weights larger than this are worth keeping as float16.
_LARGE_BYTES = 1_000_000
Labels = npt.NDArray[np.uint8]
Attempted = tuple[ir.Model, float]
Attempt = Callable[[Collection[str]], Attempted]


@dataclass(frozen=True)
class LayerNoise:
    """The noise of one convolution from rounding its weights and input to 8 bits."""

    name: str  # of the convolution
    weights: float  # noise over signal, both as sums of squares
    input: float  # noise over signal of the map it reads
    in_float: bool = False  # whether it was kept in float

    @property
    def sqnr_db(self) -> float:
        """Return signal to quantization noise of the output, in decibels, taking the two noises as independent."""
        noise = self.weights + self.input
        return -10 * log10(noise) if noise > 0 else inf


@dataclass(frozen=True)
class Quantization:
    """How a graph was quantized.

    Attributes:
        method: how clipping thresholds were chosen.
        images: number of calibration images.
        layers: the trunk's convolutions in order.
        mean_iu: between the labels of the float and of the 8-bit graph, over all calibration images or over the first
            `BUNDLED_PHOTOS`, whichever is less.
        min_agreement: the least `mean_iu` that was required.
    """

    method: Calibration
    images: int
    layers: tuple[LayerNoise, ...]
    mean_iu: float
    min_agreement: float

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON."""
        layers = [asdict(layer) | {"sqnr_db": layer.sqnr_db} for layer in self.layers]
        return asdict(self) | {"method": str(self.method), "layers": layers}


@dataclass(frozen=True)
class Scale:
    """How a map is quantized: value = scale * (integer - zero point)."""

    scale: np.float32  # size of one step
    zero_point: np.uint8 | np.int8  # the integer that stands for 0; its type is that of the map


def quantize(
    model: ir.Model,
    feeds: Feeds,
    *,
    method: Calibration,
    target: Target,
    min_agreement: float,
    boundary: float = 0.0,
    on_step: OnStep = quietly,
) -> tuple[ir.Model, Quantization]:
    """Quantize as many of the trunk's convolutions, in a copy of the float32 `model`, as keep the labels.

    Labels on `feeds`, the calibration images, keep a mean IU of at least `min_agreement`. `target`, where the graph is
    to run, decides the integers' type. The logit of a single class is labelled 1 above `boundary`.

    Raises:
        UsageError: the graph has no trunk.
        ParityError: even a single layer in 8 bits does not agree well enough.
    """
    if not any(trunk_convolutions(model)):
        raise UsageError(
            "no convolution of constant weights comes before an activation (Relu, Clip, LeakyRelu, HardSwish, ...), so "
            "no layer can be quantized",
            remedy="Pass --precision fp16.",
        )
    parts = (runs(model, _inner_maps(model)) + 1) * len(feeds)
    with on_step(f"observe every layer on {len(feeds)} images", parts) as advance:
        observed = observe_maps(model, feeds, advance)
        expected = _labels(model, feeds, boundary, advance)
    scales = {name: map_scale(found, method, target) for name, found in observed.items()}
    noises = layer_noises(model, observed, scales)

    def attempt(layers: Collection[str]) -> Attempted:
        """Quantize those layers; returns the graph and its mean IU."""
        with on_step(f"8 bits in {len(layers)} of {len(noises)} layers, compare labels", len(feeds)) as advance:
            candidate = quantize_layers(model, scales, set(layers))
            return candidate, _agreement(expected, _labels(candidate, feeds, boundary, advance))

    worst_first = [layer.name for layer in sorted(noises, key=lambda layer: layer.sqnr_db)]
    layers, (candidate, mean_iu) = _most_layers(attempt, worst_first, min_agreement)
    if not mean_iu >= min_agreement:
        raise ParityError(
            f"int8 in {layers[0]} only gives a mean IU of {mean_iu:.4f} with the float graph, less than "
            f"{min_agreement:g}",
            remedy="Calibrate on representative images, or pass another --calibration-method or --precision fp16.",
        )
    marked = tuple(replace(layer, in_float=layer.name not in layers) for layer in noises)
    return candidate, Quantization(method, len(feeds), marked, mean_iu, min_agreement)


def _most_layers(attempt: Attempt, worst_first: list[str], enough: float) -> tuple[list[str], Attempted]:
    """Return the most layers that agree well enough, or else the single layer that agrees best."""
    kept, found = _fewest_in_float(attempt, worst_first, enough)
    if not found[1] >= enough:
        # Noise does not show which layers decide labels: if its order fails, every layer is tried separately.
        alone = {name: attempt([name])[1] for name in worst_first}
        worst_first = sorted(worst_first, key=lambda name: alone[name])
        kept, found = _fewest_in_float(attempt, worst_first, enough)
    return worst_first[kept:], found


def _fewest_in_float(attempt: Attempt, worst_first: Sequence[str], enough: float) -> tuple[int, Attempted]:
    """Find the fewest layers to keep in float, at most all but one, by bisection: each attempt runs every image."""
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


def _labels(model: ir.Model, feeds: Feeds, boundary: float, advance: Advance) -> list[Labels]:
    found = []
    with open_graph(model) as runner:
        for feed in feeds:
            found.append(labels_of(runner.run(feed), boundary))
            advance()
    return found


def _agreement(expected: Sequence[Array], found: Sequence[Array]) -> float:
    """Return mean IU over all images or over the bundled ones, whichever is less: `verify` uses the latter."""
    matrices = (confusion_matrix(e, f, MAX_CLASSES) for e, f in zip(expected, found, strict=True))
    bundled = sum(islice(matrices, BUNDLED_PHOTOS))
    return min(Scores(np.asarray(counts)).mean_iu for counts in (bundled, bundled + sum(matrices)))


def observe_maps(model: ir.Model, feeds: Feeds, advance: Advance = lambda: None) -> dict[str, Activation]:
    """Observe every map that needs a scale, with its surrounding constants; the input is from the feeds."""
    inputs = {str(value.name) for value in model.graph.inputs}
    found = observe(model, _inner_maps(model), feeds, advance)
    for name in inputs & set(map_names(model)):
        found[name] = Activation()
        for feed in feeds:
            found[name].add(feed[name])
    for source, beside in _constants_beside(model):
        if source in found:
            found[source].add(beside)
    return found


def _constants_beside(model: ir.Model) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    """Find the constants that surround maps, each with the name of the map whose values it surrounds."""
    for node in model.graph:
        if node.op_type != "Concat" or rearranged_input(node) is None:
            continue
        for value in dict.fromkeys(v for v in node.inputs if v is not None and is_constant(v)):
            spread = value.producer()
            found = constant(spread.inputs[0] if spread is not None else value)
            if found is not None:
                yield str(source_of(node.outputs[0]).name), found


def map_names(model: ir.Model) -> list[str]:
    """Return all maps that need a scale, in order."""
    convolutions = list(trunk_convolutions(model))
    names = [str(source_of(node.inputs[0]).name) for node in convolutions]
    return list(dict.fromkeys([*names, *(str(activation_of(node).name) for node in convolutions)]))


def _inner_maps(model: ir.Model) -> list[str]:
    inputs = {str(value.name) for value in model.graph.inputs}
    return [name for name in map_names(model) if name not in inputs]


def map_scale(found: Activation, method: Calibration, target: Target) -> Scale:
    """Return the scale of a map.

    ONNX Runtime on a CPU has kernels for uint8 maps, and fuses a ReLU only where the zero point is 0; TensorRT supports
    symmetric int8 only.
    """
    limit = threshold(found, method) or 1.0
    if target is not Target.CPU:
        return Scale(np.float32(limit / _SIGNED), np.int8(0))
    # 0 has its own integer: paddings are zeros, also around a map that has none.
    low, high = min(max(found.low, -limit), 0.0), max(min(found.high, limit), 0.0)
    step = np.float32((high - low) / _UNSIGNED or 1.0)
    return Scale(step, np.uint8(round(-low / float(step))))


def layer_noises(model: ir.Model, observed: Mapping[str, Activation], scales: Mapping[str, Scale]) -> list[LayerNoise]:
    """Return the noise of every trunk convolution: of the weights exactly, of the input from its histogram."""
    found = []
    for node in trunk_convolutions(model):
        weight, source = required_constant(node.inputs[1]), str(source_of(node.inputs[0]).name)
        integers, steps = rounded_weights(weight)
        error = weight - integers * steps.reshape(-1, *[1] * (weight.ndim - 1))
        share = float(np.square(error, dtype=np.float64).sum() / max(np.square(weight, dtype=np.float64).sum(), 1e-300))
        found.append(LayerNoise(str(node.name), share, input_noise(observed[source], scales[source])))
    return found


def input_noise(found: Activation, scale: Scale) -> float:
    """Return noise over signal of a map.

    Uniform rounding adds a twelfth of a squared step where a value fits; elsewhere the clipped part counts.
    """
    centres = (np.arange(BINS) + 0.5) * found.width
    info = np.iinfo(scale.zero_point.dtype)
    reach = float(scale.scale) * max(info.max - int(scale.zero_point), int(scale.zero_point) - info.min)
    # The first bin holds the zeros of a ReLU, which rounding does not change.
    rounding = np.where(np.arange(BINS) > 0, float(scale.scale) ** 2 / 12, 0)
    errors = np.where(centres > reach, (centres - reach) ** 2, rounding)
    signal = float((found.counts * centres**2).sum())
    return float((found.counts * errors).sum()) / signal if signal else 0.0


def quantize_layers(model: ir.Model, scales: Mapping[str, Scale], layers: set[str]) -> ir.Model:
    """Quantize the trunk convolutions called `layers` in a copy of `model`; `scales` are by the names of maps."""
    copy = model.clone()
    chosen = {node for node in trunk_convolutions(copy) if node.name in layers}
    rounded: dict[ir.Value, tuple[ir.Value, Scale]] = {}
    roots = {source_of(node.inputs[0]) for node in chosen} | {activation_of(node) for node in chosen}
    for value in copy.graph.inputs:
        if value in roots:
            rounded[value] = _rounded(copy, value, scales[str(value.name)])
    for node in list(copy.graph):
        if node in chosen:
            _quantize_weights(copy, node)
        _read_rounded(copy, node, rounded)
        made = node.outputs[0]
        if made in roots:
            rounded[made] = _rounded(copy, made, scales[str(made.name)])
        elif node.op_type in ("MaxPool", "Concat") and (scale := _scale_of(node, rounded)) is not None:
            rounded[made] = _rounded(copy, made, scale)
    _store_in_half(copy)
    RemoveUnusedNodesPass()(copy)
    return copy


def _scale_of(node: ir.Node, rounded: Mapping[ir.Value, tuple[ir.Value, Scale]]) -> Scale | None:
    return next((scale for made, scale in rounded.values() if made in node.inputs), None)


def _read_rounded(model: ir.Model, node: ir.Node, rounded: dict[ir.Value, tuple[ir.Value, Scale]]) -> None:
    """Replace the inputs of a node by their quantized versions; constants beside a map get the scale of the map."""
    for index, value in enumerate(node.inputs):
        if value in rounded and node.op_type != "QuantizeLinear":
            node.replace_input_with(index, rounded[value][0])
    scale = _scale_of(node, rounded) if node.op_type == "Concat" else None
    if scale is None:
        return
    for value in dict.fromkeys(v for v in node.inputs if v is not None and is_constant(v)):
        made = _rounded_constant(model, node, value, scale)
        for index in [index for index, given in enumerate(node.inputs) if given is value]:
            node.replace_input_with(index, made)


def _rounded_constant(model: ir.Model, node: ir.Node, value: ir.Value, scale: Scale) -> ir.Value:
    """Quantize a constant beside a map: to integers in the file, or after the Expand that spreads it."""
    found = constant(value)
    if found is None:
        return _rounded(model, value, scale)[0]
    limits = np.iinfo(scale.zero_point.dtype)
    integers = np.clip(np.rint(found / scale.scale) + scale.zero_point, limits.min, limits.max)
    stored = add_constant(model, f"{value.name}/integers", integers.astype(scale.zero_point.dtype))
    return _dequantized(model, node, [stored, *_parameters(model, value, scale)], str(value.name))


def _rounded(model: ir.Model, value: ir.Value, scale: Scale) -> tuple[ir.Value, Scale]:
    """Quantize and dequantize a value, right behind its producer."""
    parameters, shape = _parameters(model, value, scale), static_shape(value) or ()
    integers = node_after(value, "QuantizeLinear", [value, *parameters], f"{value.name}/quantize", shape)
    integers.type = ir.TensorType(ir.DataType.from_numpy(np.array(scale.zero_point).dtype))
    made = node_after(integers, "DequantizeLinear", [integers, *parameters], f"{value.name}/dequantize", shape)
    made.type = ir.TensorType(ir.DataType.FLOAT)
    return made, scale


def _parameters(model: ir.Model, value: ir.Value, scale: Scale) -> list[ir.Value]:
    return [
        add_constant(model, f"{value.name}/scale", np.array(scale.scale)),
        add_constant(model, f"{value.name}/zero_point", np.array(scale.zero_point)),
    ]


def _dequantized(
    model: ir.Model, reader: ir.Node, inputs: list[ir.Value], name: str, **attributes: Attribute
) -> ir.Value:
    """Dequantize integers of the file right before the node that reads them."""
    made = ir.val(f"{name}/float", ir.DataType.FLOAT, inputs[0].shape)
    node = ir.node("DequantizeLinear", inputs, attributes, outputs=[made], name=f"{name}/dequantize")
    model.graph.insert_before(reader, node)
    return made


def _quantize_weights(model: ir.Model, node: ir.Node) -> None:
    integers, steps = rounded_weights(required_constant(node.inputs[1]))
    parts: dict[str, Array] = {"int8": integers, "scale": steps, "zero_point": np.zeros(len(steps), np.int8)}
    parameters = [add_constant(model, f"{node.name}/weight_{what}", array) for what, array in parts.items()]
    node.replace_input_with(1, _dequantized(model, node, parameters, f"{node.name}/weight", axis=0))


def rounded_weights(weight: npt.NDArray[np.float32]) -> tuple[npt.NDArray[np.int8], npt.NDArray[np.float32]]:
    """Return integers of -127 to 127 and the step of each output channel."""
    steps = np.abs(weight).reshape(len(weight), -1).max(axis=1) / np.float32(_SIGNED)
    steps = np.where(steps > 0, steps, 1).astype(np.float32)
    return np.rint(weight / steps.reshape(-1, *[1] * (weight.ndim - 1))).astype(np.int8), steps


def _store_in_half(model: ir.Model) -> None:
    """Store large float weights, those of the up-sampling, as float16; they are cast to float32 when run.

    Their rounding (2^-11) is negligible beside 8 bits elsewhere, and they are a twentieth of the file.
    """
    for node in [node for node in model.graph if node.op_type in ("Conv", "ConvTranspose")]:
        weight = constant(node.inputs[1])
        if weight is None or weight.nbytes < _LARGE_BYTES or np.abs(weight).max() > np.finfo(np.float16).max:
            continue
        stored = add_constant(model, f"{node.name}/weight_half", weight.astype(np.float16))
        made = ir.val(f"{node.name}/weight_float", ir.DataType.FLOAT, stored.shape)
        cast = ir.node("Cast", [stored], {"to": int(ir.DataType.FLOAT)}, outputs=[made], name=made.name)
        model.graph.insert_before(node, cast)
        node.replace_input_with(1, made)
