"""What the layers of a network and of a built engine really compute in."""

import json
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from fcn_deploy.artifact.engine import LayerTypes
from fcn_deploy.choices import Precision
from fcn_deploy.errors import ParityError
from fcn_deploy.runtime.tensorrt_flavour import LAYERS, Flavour, Message

# By what TensorRT calls a type, in its enumeration and in its inspector's words; the first that occurs counts.
_NAMES = {
    "bf16": "bf16", "bfloat16": "bf16", "fp16": "fp16", "half": "fp16", "int8": "int8", "fp32": "fp32", "float": "fp32",
}  # fmt: skip
# Constants compute nothing.
_NOT_COUNTED = ("CONSTANT",)


def network_layers(network: Any) -> LayerTypes:
    """Types of the layers of a parsed network, as TensorRT's parser typed them.

    In a strongly typed network these are the types of the engine, before layers are fused.
    """
    layers = [network.get_layer(index) for index in range(network.num_layers)]
    counted = [layer for layer in layers if layer.type.name not in _NOT_COUNTED]
    return _counted("network", (_network_type(layer) for layer in counted))


def _network_type(layer: Any) -> str | None:
    # A quantized layer of the network stands between two that say so: it takes what was 8 bits.
    if layer.type.name in ("QUANTIZE", "DEQUANTIZE"):
        return "int8"
    return _named(str(layer.get_output(0).dtype.name))


def engine_layers(flavour: Flavour, engine: Any) -> LayerTypes | None:
    """Types of the layers of an engine on its GPU, as TensorRT's engine inspector reports them; None if it does not."""
    said = engine.create_engine_inspector().get_engine_information(flavour.trt.LayerInformationFormat.JSON)
    return inspected(said)


def listed_layers(messages: Iterable[Message]) -> LayerTypes | None:
    """Types of an engine's layers as its builder lists them in its log, which needs no GPU; None if it does not.

    The list is what the inspector would give in one line a layer (TensorRT-RTX 1.7; no documented interface).
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
    """Types of layers in the inspector's JSON, of TensorRT 10 (`Format/Datatype`) or 11 (`Format` and `Datatype`).

    None when it says nothing of types, as it does of engines that were built without detailed verbosity.
    """
    layers = [layer for layer in json.loads(text)["Layers"] if isinstance(layer, dict)]
    found = _counted("engine", (_inspected_type(layer) for layer in layers))
    return found if found.counts else None


def _inspected_type(layer: Mapping[str, Any]) -> str | None:
    """The narrowest type among a layer's inputs and outputs: a convolution of halves may give floats."""
    tensors = [*layer.get("Inputs", ()), *layer.get("Outputs", ())]
    words = " ".join(str(v) for t in tensors for k, v in t.items() if "format" in k.lower() or "datatype" in k.lower())
    return _named(words)


def _named(words: str) -> str | None:
    found = set(re.findall(r"[a-z0-9]+", words.lower()))
    return next((kind for name, kind in _NAMES.items() if name in found), None)


def _counted(seen_in: str, types: Iterable[str | None]) -> LayerTypes:
    return LayerTypes(seen_in, dict(Counter(kind for kind in types if kind is not None).most_common()))


def require_precision(layers: LayerTypes, precision: Precision) -> None:
    """Refuse an engine none of whose layers computes in what was asked for.

    Raises:
        ParityError: there is no such layer.
    """
    if layers.counts.get(precision, 0) == 0:
        found = ", ".join(f"{count} in {kind}" for kind, count in layers.counts.items()) or "none"
        raise ParityError(
            f"no layer of the {layers.seen_in} computes in {precision}: {found}",
            remedy=f"The graph's types decide: export it again with --precision {precision}.",
        )
