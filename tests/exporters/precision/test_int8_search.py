"""Quantising with proof: noise against a simulation in float64, and layers kept in float until labels agree."""

import json
from contextlib import AbstractContextManager, nullcontext
from math import inf
from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from exporters.precision.int8 import (
    LayerNoise,
    Scale,
    input_noise,
    layer_noises,
    map_scale,
    observe_maps,
    quantize,
)
from exporters.precision.observe import Activation
from fcn_deploy.choices import Calibration, Target
from fcn_deploy.errors import ParityError, UsageError
from fcn_deploy.progress import Advance
from tests.exporters.passes.graphs import operators, parsed, run, weights
from tests.messages import states

MINMAX = Calibration.MINMAX
LAYERS = """
c = Conv<pads=[1,1,1,1]>(image, w, b) r = Relu(c)
d = Conv<pads=[1,1,1,1]>(r, w2, b2) q = Relu(d) s = Conv(q, vs, bs)
"""


def arrays_of(*, spoilt: bool = False) -> dict[str, np.ndarray]:
    """Two layers; `spoilt` gives the second a weight in every channel that is so large that all others round to 0.

    It reads a channel that is always 0, so in float it changes nothing.
    """
    live = 64 if spoilt else 4
    first, bias = weights(live + spoilt, 3, 3, 3), np.zeros(live + spoilt, np.float32)
    first[live:], bias[live:] = 0, -1
    second = np.sign(weights(4, live + spoilt, 3, 3, seed=3)) * np.float32(0.05)
    second[:, live:] = 0.05 * 280
    return {
        "w": first, "b": bias, "w2": second if spoilt else weights(4, 4, 3, 3, seed=3),
        "b2": weights(4, 1, seed=4)[:, 0], "vs": weights(3, 4, 1, 1, seed=5), "bs": np.zeros(3, np.float32),
    }  # fmt: skip


def network(*, spoilt: bool = False, body: str = LAYERS) -> ir.Model:
    return parsed(body, "float[1,3,24,24] image", "float[1,K,H,W] s", **arrays_of(spoilt=spoilt))


def images(count: int = 2) -> list[dict[str, np.ndarray]]:
    rng = np.random.default_rng(5)
    return [{"image": rng.normal(0, 50, (1, 3, 24, 24)).astype(np.float32)} for _ in range(count)]


def labels(model: ir.Model, folder: Path) -> np.ndarray:
    return np.concatenate([run(model, folder, feed)[0].argmax(axis=1) for feed in images()])


def mean_iu(expected: np.ndarray, found: np.ndarray) -> float:
    classes = np.union1d(expected, found)
    return float(
        np.mean([((expected == k) & (found == k)).sum() / ((expected == k) | (found == k)).sum() for k in classes])
    )


def simulated_noise(values: np.ndarray, scale: Scale) -> float:
    """Noise over signal of rounding every value by itself, in float64."""
    info, zero, step = np.iinfo(scale.zero_point.dtype), int(scale.zero_point), float(scale.scale)
    rounded = (np.clip(np.rint(values / step) + zero, info.min, info.max) - zero) * step
    return float(np.square(rounded - values).sum() / np.square(values).sum())


@pytest.mark.parametrize("target", [Target.CPU, Target.CUDA])
@pytest.mark.parametrize("method", list(Calibration))
def test_the_noise_of_a_map_is_that_of_rounding_each_value(method: Calibration, target: Target) -> None:
    values = np.maximum(np.random.default_rng(7).normal(0, 3, 70_000), 0).astype(np.float32)
    found = Activation()
    found.add(np.repeat(values, 7))  # of which the histogram counts one
    scale = map_scale(found, method, target)

    decibels = [-10 * np.log10(noise) for noise in (input_noise(found, scale), simulated_noise(values, scale))]

    assert decibels[0] == pytest.approx(decibels[1], abs=0.5)


def test_values_that_are_cut_off_are_noise_too() -> None:
    values = np.random.default_rng(7).exponential(1, 70_000).astype(np.float32)
    found = Activation()
    found.add(values)
    scale = Scale(np.float32(2 / 127), np.int8(0))

    assert input_noise(found, scale) == pytest.approx(simulated_noise(values, scale), rel=0.1)
    assert input_noise(found, scale) > 10 * input_noise(found, map_scale(found, MINMAX, Target.CUDA))


def test_a_map_of_zeros_has_no_noise() -> None:
    found = Activation()
    found.add(np.zeros(70, np.float32))

    assert input_noise(found, map_scale(found, MINMAX, Target.CPU)) == 0
    assert LayerNoise("dead", 0, 0).sqnr_db == inf


def test_the_noise_of_weights_is_that_of_rounding_each() -> None:
    model = network()
    observed = observe_maps(model, images())
    scales = {name: map_scale(found, MINMAX, Target.CPU) for name, found in observed.items()}

    found = layer_noises(model, observed, scales)

    assert [layer.name for layer in found] == ["c", "d"]
    for layer, name in zip(found, ("w", "w2"), strict=True):
        weight = arrays_of()[name].astype(np.float64)
        steps = np.abs(weight).max(axis=(1, 2, 3), keepdims=True) / 127
        error = np.rint(weight / np.where(steps, steps, 1)) * steps - weight
        assert layer.weights == pytest.approx(np.square(error).sum() / np.square(weight).sum(), rel=1e-3)
        assert layer.sqnr_db == pytest.approx(-10 * np.log10(layer.weights + layer.input))


def test_the_graph_s_own_input_is_observed_too() -> None:
    found = observe_maps(network(), images())

    given = np.concatenate([feed["image"] for feed in images()])
    assert set(found) == {"image", "r", "q"}
    assert (found["image"].low, found["image"].high) == (given.min(), given.max())


@pytest.mark.parametrize("target", list(Target))
def test_all_layers_are_in_8_bits_where_labels_agree(target: Target, tmp_path: Path) -> None:
    model = network()

    found, report = quantize(model, images(), method=MINMAX, target=target, min_agreement=0.8)

    assert [(layer.name, layer.in_float) for layer in report.layers] == [("c", False), ("d", False)]
    assert report.mean_iu == pytest.approx(mean_iu(labels(model, tmp_path), labels(found, tmp_path)))
    assert 0.8 <= report.mean_iu < 1
    assert (report.images, report.method, report.min_agreement) == (2, MINMAX, 0.8)
    assert {"QuantizeLinear", "DequantizeLinear"}.isdisjoint(operators(model))


def test_the_layer_that_rounds_worst_is_kept_in_float(tmp_path: Path) -> None:
    model = network(spoilt=True)
    steps: list[tuple[str, int]] = []
    done: list[None] = []

    def told(step: str, parts: int = 1) -> AbstractContextManager[Advance]:
        steps.append((step, parts))
        return nullcontext(lambda: done.append(None))

    found, report = quantize(model, images(), method=MINMAX, target=Target.CPU, min_agreement=0.9, on_step=told)

    assert [(layer.name, layer.in_float) for layer in report.layers] == [("c", False), ("d", True)]
    assert report.mean_iu == pytest.approx(mean_iu(labels(model, tmp_path), labels(found, tmp_path)))
    assert report.mean_iu >= 0.9
    assert found.graph.node("d").inputs[1] is found.graph.initializers["w2"]
    assert steps[1:] == [(f"8 bits in {n} of 2 layers, compare labels", 2) for n in (2, 1)]
    assert len(done) == sum(parts for _, parts in steps)


def test_a_lower_bound_lets_the_worst_layer_be_rounded() -> None:
    _, report = quantize(network(spoilt=True), images(), method=MINMAX, target=Target.CPU, min_agreement=0.01)

    assert [layer.in_float for layer in report.layers] == [False, False]
    assert report.mean_iu < 0.9


def test_no_layer_that_agrees_is_an_error() -> None:
    with pytest.raises(ParityError, match=r"0\.\d{4} .*1") as caught:
        quantize(network(), images(), method=MINMAX, target=Target.CPU, min_agreement=1.0)

    assert caught.value.exit_code == 5
    assert "--precision fp16" in caught.value.remedy


def test_a_graph_without_a_trunk_has_nothing_to_quantise() -> None:
    with pytest.raises(UsageError, check=states("convolution Relu quantized")):
        quantize(network(body="s = Conv(image, w, b)"), images(), method=MINMAX, target=Target.CPU, min_agreement=0.5)


def test_the_report_as_json() -> None:
    _, report = quantize(network(), images(), method=MINMAX, target=Target.CPU, min_agreement=0.5)

    found = json.loads(json.dumps(report.to_dict()))

    assert found["method"] == "minmax"
    assert [layer["name"] for layer in found["layers"]] == ["c", "d"]
    assert found["layers"][0]["sqnr_db"] == report.layers[0].sqnr_db
    assert found["mean_iu"] == report.mean_iu


def test_constants_put_around_a_map_are_in_its_range() -> None:
    """The live window keeps a frame's values as constants beside a map; clipping them would shift every border."""
    body = LAYERS.replace("(r, w2, b2)", "(f, w2, b2)").replace("d = Conv", "f = Concat<axis=3>(r, frame) d = Conv")
    frame = np.full((1, 4, 24, 1), 5000, np.float32)
    model = parsed(body, "float[1,3,24,24] image", "float[1,K,H,W] s", **arrays_of(), frame=frame)

    assert observe_maps(model, images())["r"].high == 5000
