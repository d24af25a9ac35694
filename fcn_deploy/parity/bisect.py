"""Find the layer of an artifact that goes wrong first: compare prefixes of its graph with PyTorch's maps.

Each prefix has one map as its output: a graph with all maps as outputs would lose the fusions that may be at fault.
"""

from collections.abc import Iterator, Mapping
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
from fcn_deploy.onnx_file import read_model
from fcn_deploy.parity.inputs import ParityInput
from fcn_deploy.parity.report import json_ready
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.run_graph import open_graph

Array = npt.NDArray[Any]

# Layers whose maps are compared: every learned layer ends in one, or in a pool whose ReLU was moved behind it.
_COMPARED = ("relu", "score", "fuse")
_ROUNDING = ("QuantizeLinear", "DequantizeLinear")


@dataclass(frozen=True)
class LayerComparison:
    """The difference between one layer's map and PyTorch's."""

    name: str  # name of the layer
    max_abs_error: float  # largest absolute difference
    extent: float  # the reference's largest value minus its smallest
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

    Where the artifact computes a window of a map, the window is compared. Layers that a rewrite replaced are left out.
    """
    model = read_model(path)
    cuts = dict(_cuts(model))
    with on_step(f"run PyTorch on {given.name}, keep the maps of {len(cuts)} layers"):
        maps = _maps(network, given, {name: node for name, (node, _) in cuts.items()})
    found = []
    with on_step(f"run {len(cuts)} prefixes of the artifact on {given.name}", len(cuts)) as advance:
        for name, (_, end) in cuts.items():
            actual = _run(prefix(model, [str(end.name)]), given, options or OrtOptions())
            if name in maps and maps[name].shape == actual.shape:
                found.append(_compared(name, maps[name], actual))
            advance()
    return LayerReport(given.name, bound, tuple(found))


def _cuts(model: ir.Model) -> Iterator[tuple[str, tuple[ir.Node, ir.Value]]]:
    """Yield layers by name, each with its node and its output value, after the rounding that runtimes fuse with it."""
    for node in model.graph:
        learned = str(node.name).startswith(_COMPARED) or node.op_type == "Relu"
        if learned and "/" not in str(node.name):
            end = node.outputs[0]
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


def _maps(network: nn.Module, given: ParityInput, nodes: Mapping[str, ir.Node]) -> dict[str, Array]:
    """Return the expected outputs of `nodes`, from the modules of the same names."""
    found: dict[str, Array] = {}

    def keep(name: str, output: Tensor) -> None:
        found[name] = _expected(nodes[name], output)

    hooks = [
        module.register_forward_hook(lambda _module, _inputs, output, name=name: keep(name, output))
        for name, module in network.named_modules()
        if name in nodes
    ]
    try:
        with torch.inference_mode():
            network(torch.from_numpy(given.image))
    finally:
        for hook in hooks:
            hook.remove()
    return found


def _run(model: ir.Model, given: ParityInput, options: OrtOptions) -> Array:
    with open_graph(model, options) as runner:
        (output,) = runner.run({spec.name: given.feed(spec) for spec in runner.inputs}).values()
    return output


def _compared(name: str, expected: Array, actual: Array) -> LayerComparison:
    error = expected.astype(np.float64) - actual
    energies = float(np.square(error).sum()), float(np.square(expected, dtype=np.float64).sum())
    return LayerComparison(name, float(np.abs(error).max()), float(np.ptp(expected)), *energies)
