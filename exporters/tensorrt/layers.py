"""The types that the layers of a network and of a built engine compute in."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fcn_deploy.artifact.engine import LayerTypes
from fcn_deploy.choices import Precision
from fcn_deploy.errors import ParityError
from fcn_deploy.runtime.tensorrt_flavour import LAYERS, Flavour, Message

# TensorRT's names of types, in its enumeration and in its inspector; the first that occurs is used.
_NAMES = {
    "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "half": "fp16", "int8": "int8", "fp32": "fp32", "float": "fp32",
}  # fmt: skip


def network_layers(network: Any) -> LayerTypes:
    """Count the types of the layers of a parsed network.

    In a strongly typed network these are the types of the engine, before layers are fused.
    """
    layers = (network.get_layer(index) for index in range(network.num_layers))
    # Constants do not compute.
    return _counted("network", (_network_type(layer) for layer in layers if layer.type.name != "CONSTANT"))


def _network_type(layer: Any) -> str | None:
    # A quantized layer itself is typed as float; the layers around it show that it reads 8 bits.
    if layer.type.name in ("QUANTIZE", "DEQUANTIZE"):
        return "int8"
    return _named(str(layer.get_output(0).dtype.name))


def engine_layers(flavour: Flavour, engine: Any) -> LayerTypes | None:
    """Count the types of an engine's layers that TensorRT's engine inspector reports on a GPU; None without any."""
    inspector = engine.create_engine_inspector()
    return inspected(inspector.get_engine_information(flavour.trt.LayerInformationFormat.JSON))


def listed_layers(messages: Iterable[Message]) -> LayerTypes | None:
    """Count the types of an engine's layers in its builder's log, which needs no GPU; None without a list.

    The list has one line a layer, as from the inspector (TensorRT-RTX 1.7; not a documented interface).
    """
    lines = [
        line for m in messages if m.text.startswith(LAYERS) for line in m.text.splitlines() if "LayerType:" in line
    ]
    found = _counted("builder", (_listed_type(line) for line in lines))
    return found if found.counts else None


def _listed_type(line: str) -> str | None:
    # Constants lie between inputs and outputs; scalars among them are floats whatever the layer computes in.
    inputs, _, rest = line.partition("Constants:")
    _, _, outputs = rest.partition("Outputs:")
    return _named(" ".join(re.findall(r"Datatype: (\w+)", inputs + outputs)))


def inspected(text: str) -> LayerTypes | None:
    """Count the types of layers in the JSON of the inspector of TensorRT 10 or 11.

    10 states them as `Format/Datatype`, 11 as `Format` and `Datatype`. None when there are none, as for engines that
    were built without detailed verbosity.
    """
    layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
    found = _counted("engine", (_inspected_type(layer) for layer in layers))
    return found if found.counts else None


def _inspected_type(layer: Mapping[str, Any]) -> str | None:
    """Return the narrowest type of a layer's inputs and outputs: a convolution of halves may output floats."""
    tensors = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
    words = " ".join(str(v) for t in tensors for k, v in t.items() if "format" in k.lower() or "datatype" in k.lower())
    return _named(words)


def _named(words: str) -> str | None:
    found = set(re.findall(r"[a-z0-9]+", words.lower()))
    return next((kind for name, kind in _NAMES.items() if name in found), None)


def _counted(seen_in: str, types: Iterable[str | None]) -> LayerTypes:
    return LayerTypes(seen_in, dict(Counter(kind for kind in types if kind is not None).most_common()))


def require_precision(layers: LayerTypes, precision: Precision) -> None:
    """Check that at least one layer computes in `precision`.

    Raises:
        ParityError: there is no such layer.
    """
    if layers.counts.get(precision, 0) == 0:
        found = ", ".join(f"{count} in {kind}" for kind, count in layers.counts.items()) or "none"
        raise ParityError(
            f"no layer of the {layers.seen_in} computes in {precision}: {found}",
            remedy=f"The engine uses the graph's types: export it again with --precision {precision}.",
        )
