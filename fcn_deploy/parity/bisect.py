"""Find the layer of an artifact that goes wrong first: compare prefixes of its graph with PyTorch's maps.

Each prefix has one map as its output: a graph with all maps as outputs would lose the fusions that may be at fault.
"""

import contextlib
import sys
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir
import torch
from torch import Tensor, nn

from fcn_deploy.graph import prefix
from fcn_deploy.model_info import SCALE_KEY, WINDOW_KEY
from fcn_deploy.models.logits import Logits
from fcn_deploy.onnx_file import read_model
from fcn_deploy.parity.inputs import ParityInput
from fcn_deploy.parity.report import json_ready
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.run_graph import open_graph

Array = npt.NDArray[Any]

# A convolution in front of one of these is not compared by itself: runtimes fuse the two.
_FUSED = ("Relu", "Clip", "LeakyRelu")
# Where an activation cuts off nearly everything, the rounding errors of what is left are as large as before.
_LEAST_SHARE = 0.1
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class LayerComparison:
    """The difference between one layer's map and PyTorch's."""

    name: str  # name of the layer
    max_abs_error: float  # largest absolute difference
    extent: float  # the reference's range, at least a tenth of that before the activation that ends the layer
    error_energy: float  # sum of the squared differences
    energy: float  # sum of the reference's squares

    @property
    def relative_error(self) -> float:
        """Largest absolute difference divided by the reference's range."""
        if self.max_abs_error == 0:
            return 0.0
        return self.max_abs_error / self.extent if self.extent else float("inf")

    @property
    def noise(self) -> float:
        """Energy of the error divided by that of the reference."""
        if self.error_energy == 0:
            return 0.0
        return self.error_energy / self.energy if self.energy else float("inf")

    @property
    def snr_db(self) -> float:
        """Signal-to-noise ratio in decibels; infinite when the two are equal."""
        return float(-10 * np.log10(self.noise)) if self.noise else float("inf")


@dataclass(frozen=True)
class LayerReport:
    """The comparison of every comparable layer, in graph order."""

    input_name: str  # the input both ran on
    bound: float | None  # largest accepted relative error; None when the arithmetic has no such bound
    layers: tuple[LayerComparison, ...]  # the comparisons

    @property
    def first_wrong(self) -> LayerComparison | None:
        """The first layer beyond the bound; without a bound, the layer that adds the most noise; else None."""
        if self.bound is not None:
            return next((layer for layer in self.layers if not layer.relative_error <= self.bound), None)
        before = [0.0, *(layer.noise for layer in self.layers)]
        added = [layer.noise - noise for layer, noise in zip(self.layers, before, strict=False)]
        return self.layers[int(np.argmax(added))] if added else None

    @property
    def verdict(self) -> str:
        """The result as a sentence."""
        found = self.first_wrong
        if not self.layers:
            return f"on {self.input_name}, no layer could be compared: the graph has none that is named after a module"
        if found is None:
            return (
                f"on {self.input_name}, no layer exceeds {self.bound:g}: an error, if there is one, comes from a "
                "fusion that a runtime makes only in the whole graph"
            )
        error = f"{found.relative_error:.1e} of its range, {found.snr_db:.1f} dB"
        if self.bound is None:
            return f"on {self.input_name}, {found.name} adds most noise ({error})"
        return f"on {self.input_name}, {found.name} is the first layer to exceed {self.bound:g} ({error})"

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON."""
        layers = [{"name": c.name, "relative_error": c.relative_error, "snr_db": c.snr_db} for c in self.layers]
        found = self.first_wrong
        first = found.name if found else None
        report = {"input": self.input_name, "bound": self.bound, "layers": layers, "first_wrong": first}
        return {key: json_ready(value) for key, value in report.items()}


def compare_layers(
    path: Path,
    network: nn.Module,
    given: ParityInput,
    bound: float | None,
    *,
    options: OrtOptions | None = None,
    on_step: OnStep = quietly,
) -> LayerReport:
    """Run prefixes of the artifact in `path`, each ending in one layer, and compare them with `network`'s maps.

    Compared are the nodes that are named after a module, and compute its output alone. Where the artifact computes a
    window of a map, the window is compared. Layers that a rewrite replaced are left out.
    """
    model, modules = read_model(path), _modules(network)
    cuts = dict(_cuts(model, modules.keys()))
    with on_step(f"run PyTorch on {given.name}, keep the maps of {len(cuts)} layers"):
        maps = _maps(network, given, {name: (node, modules[name]) for name, (node, _) in cuts.items()})
    found = []
    with on_step(f"run {len(cuts)} prefixes of the artifact on {given.name}", len(cuts)) as advance:
        for name, (_, end) in cuts.items():
            actual = _run(prefix(model, [str(end.name)]), given, options or OrtOptions())
            if name in maps and maps[name].values.shape == actual.shape:
                found.append(_compared(name, maps[name], actual))
            advance()
    return LayerReport(given.name, bound, tuple(found))


def _modules(network: nn.Module) -> dict[str, nn.Module]:
    """Return the modules of a network by the names of their nodes: `down/0/conv` for `down.0.conv`."""
    inner = network.wrapped if isinstance(network, Logits) else network
    return {name.replace(".", "/"): module for name, module in inner.named_modules() if name}


def _cuts(model: ir.Model, known: Collection[str]) -> Iterator[tuple[str, tuple[ir.Node, ir.Value]]]:
    """Yield layers by name, each with its node and its output value, after the rounding that runtimes fuse with it."""
    for node in model.graph:
        if str(node.name) not in known or node.op_type == "MaxPool":  # which only picks some of its values
            continue
        end = node.outputs[0]
        reader = _only_reader(end)
        if reader is not None and reader.op_type in _FUSED and str(reader.name) in known:
            continue
        while (reader := _only_reader(end)) is not None and reader.op_type in _ROUNDING:
            end = reader.outputs[0]
        yield str(node.name), (node, end)


def _only_reader(value: ir.Value) -> ir.Node | None:
    uses = list(value.uses())
    return uses[0].node if len(uses) == 1 else None


def _expected(node: ir.Node, output: Tensor) -> Array:
    """Return the expected output of `node`: the window of PyTorch's map that it computes, with the same scale."""
    shape = node.outputs[0].shape
    if WINDOW_KEY in node.metadata_props and shape is not None:
        row, column = (int(first) for first in node.metadata_props[WINDOW_KEY].split())
        height, width = (int(str(n)) for n in tuple(shape)[2:])
        output = output[..., row : row + height, column : column + width]
    return output.numpy() * np.float32(node.metadata_props.get(SCALE_KEY, 1))


@dataclass(frozen=True)
class _Map:
    """The expected output of a layer."""

    values: Array  # the output
    extent: float  # its range, at least a tenth of that before the activation that ends the layer


def _maps(network: nn.Module, given: ParityInput, layers: Mapping[str, tuple[ir.Node, nn.Module]]) -> dict[str, _Map]:
    """Return the expected outputs of nodes, from the modules of the same names."""
    found: dict[str, _Map] = {}
    before: dict[str, float] = {}

    def look(name: str, inputs: tuple[object, ...]) -> None:
        # Some activations overwrite their input.
        if layers[name][0].op_type in _FUSED and isinstance(inputs[0], Tensor):
            before[name] = _LEAST_SHARE * float(np.ptp(_expected(layers[name][0], inputs[0])))

    def keep(name: str, output: object) -> None:
        if isinstance(output, Tensor):
            values = _expected(layers[name][0], output)
            found[name] = _Map(values, max(float(np.ptp(values)), before.get(name, 0.0)))

    hooks = [
        hook
        for name, (_, module) in layers.items()
        for hook in (
            module.register_forward_pre_hook(lambda _module, inputs, name=name: look(name, inputs)),
            module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output)),
        )
    ]
    try:
        with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):
            network(torch.from_numpy(given.image.copy()))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _run(model: ir.Model, given: ParityInput, options: OrtOptions) -> Array:
    with open_graph(model, options) as runner:
        (output,) = runner.run({spec.name: given.feed(spec) for spec in runner.inputs}).values()
    return output


def _compared(name: str, expected: _Map, actual: Array) -> LayerComparison:
    error = expected.values.astype(np.float64) - actual
    energies = float(np.square(error).sum()), float(np.square(expected.values, dtype=np.float64).sum())
    return LayerComparison(name, float(np.abs(error).max()), expected.extent, *energies)
