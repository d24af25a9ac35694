"""Inspect an artifact: layers, map sizes, parameters, multiply-adds, metadata, and notes for its user."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import onnx_ir as ir

from fcn_deploy.artifact.bundle import Bundle, open_bundle
from fcn_deploy.dependence import dependences
from fcn_deploy.errors import BundleError
from fcn_deploy.geometry import output_shift
from fcn_deploy.graph import Layer, layers, operator_counts
from fcn_deploy.model_info import ModelInfo, NetworkSpec


@dataclass(frozen=True)
class Inspection:
    """An artifact's contents.

    Attributes:
        path: the path that was given.
        file_bytes: size of the ONNX file.
        inputs: each input as text, e.g. `image FLOAT 1x3x500x500`.
        outputs: each output as text.
        opset: version of ONNX's operator set.
        layers: every node in order.
        operators: nodes per operator, most frequent first.
        metadata: the file's metadata, unchanged.
        notes: facts that users of this model should know.
    """

    path: Path
    file_bytes: int
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    opset: int
    layers: tuple[Layer, ...]
    operators: Mapping[str, int]
    metadata: Mapping[str, str]
    notes: tuple[str, ...]

    @property
    def parameters(self) -> int:
        """Number of trained weights."""
        return sum(layer.parameters for layer in self.layers)

    @property
    def multiply_adds(self) -> int:
        """Multiply-adds of all convolutions for one batch."""
        return sum(layer.multiply_adds for layer in self.layers)

    @property
    def reach(self) -> tuple[Layer, ...]:
        """The layers whose receptive field, or share that depends on the image, differs from the one before."""
        known = [layer for layer in self.layers if layer.receptive_field is not None]
        facts = [(layer.receptive_field, layer.live) for layer in known]
        return tuple(layer for layer, now, last in zip(known, facts, [None, *facts], strict=False) if now != last)

    def to_dict(self) -> dict[str, Any]:
        """Return every fact, for JSON."""
        totals = {"parameters": self.parameters, "multiply_adds": self.multiply_adds}
        return asdict(self) | {"path": str(self.path)} | totals


def inspect(path: Path) -> Inspection:
    """Read a bundle, or any ONNX file, without loading its weights.

    Raises:
        BundleError: it is missing, damaged, differs from its manifest, or its metadata and graph contradict each other.
    """
    bundle = open_bundle(path)
    model = bundle.model
    return Inspection(
        path=path,
        file_bytes=bundle.model_path.stat().st_size,
        inputs=tuple(_described(value) for value in model.graph.inputs),
        outputs=tuple(_described(value) for value in model.graph.outputs),
        opset=model.opset_imports.get("", 0),
        layers=_layers(model),
        operators=operator_counts(model),
        metadata=dict(model.metadata_props),
        notes=_notes(bundle),
    )


def _layers(model: ir.Model) -> tuple[Layer, ...]:
    """Return every node; what its map depends on is computed where no export has recorded it."""
    found = layers(model)
    if any(layer.receptive_field for layer in found):
        return found
    known = dependences(model)
    maps = [known.get(str(node.outputs[0].name)) if node.outputs else None for node in model.graph]
    return tuple(
        replace(layer, receptive_field=depends.receptive_field, live=depends.live) if depends is not None else layer
        for layer, depends in zip(found, maps, strict=True)
    )


def _described(value: ir.Value) -> str:
    sizes = "x".join(str(n) for n in value.shape) if value.shape is not None else "unknown shape"
    return f"{value.name} {value.dtype} {sizes}"


def _notes(bundle: Bundle) -> tuple[str, ...]:
    try:
        info = bundle.info
    except BundleError as error:
        if bundle.has_facts:
            raise
        return (error.problem,)
    notes = _weight_notes(info)
    notes += _geometry_notes(info)
    if bundle.manifest is None:
        notes.append("A bare ONNX file has no manifest: whether it is intact and was verified is unknown.")
    elif bundle.manifest["parity"] is None:
        notes.append("Not compared with PyTorch (exported with --no-verify).")
    return tuple(notes)


def _geometry_notes(info: ModelInfo) -> list[str]:
    network = info.network
    shift = output_shift(network.variant, network.geometry) if isinstance(network, NetworkSpec) else 0
    if not isinstance(network, NetworkSpec) or not shift:
        return []
    return [
        f"Labels appear {shift} px to the right of and below their objects: {network.geometry} {network.name} uses the "
        "centre crop of 500x500, and its networks have learned the shift."
    ]


def _weight_notes(info: ModelInfo) -> list[str]:
    provenance = info.provenance
    notes = ["The weights are untrained: labels mean nothing."] if provenance.untrained else []
    if provenance.initialised:
        notes.append(f"Initialised at random because the checkpoint lacks them: {', '.join(provenance.initialised)}.")
    if provenance.dropped:
        notes.append(f"Dropped from the checkpoint because an FCN lacks them: {', '.join(provenance.dropped)}.")
    return notes
