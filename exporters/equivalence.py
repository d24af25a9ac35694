"""Whether two graphs compute the same: equal by structure as far as they are, by numbers where they are not.

Values of the two graphs that are made by the same operators, from the same inputs and weights, are equal by
construction. Only what lies behind the last such values (for a simplified FCN: its merged crops) is run, on noise, so
that checking a rewrite of a 540 MB model takes a fraction of a second. Where nothing matches, everything is run.
"""

import hashlib
import tempfile
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from fcn_deploy.onnx_file import LARGE_TENSOR_BYTES, write_model
from fcn_deploy.parity.compare import Comparison, compare_outputs
from fcn_deploy.runtime.ort import OrtRunner

_NOISE_SEED = 0
_NOISE_NAME = "noise"

Keys = dict[ir.Value, Hashable]


@dataclass(frozen=True)
class Difference:
    """What the comparison of two graphs found.

    Attributes:
        compared_nodes: nodes of the rewritten graph that had to be run; 0 when the two are equal by structure.
        comparison: of the outputs of what was run, or None when nothing was.
    """

    compared_nodes: int
    comparison: Comparison | None

    @property
    def relative_error(self) -> float:
        """Max error over the output's range; 0 when the graphs are equal by structure."""
        return 0.0 if self.comparison is None else self.comparison.relative_error


def compare_graphs(before: ir.Model, after: ir.Model) -> Difference:
    """Compare two models of one float output whose large weights are shared (the same tensor objects).

    Raises:
        ParityError: names or shapes of the outputs differ.
        BundleError: ONNX Runtime refuses what has to be run of either graph.
    """
    for model in (before, after):
        # What is cut out below needs the types of its inputs; a rewrite may have dropped the record of them.
        ir.passes.common.ShapeInferencePass()(model)
    keys_before, keys_after = _value_keys(before), _value_keys(after)
    ends = [{v.name: keys[v] for v in m.graph.outputs} for m, keys in ((before, keys_before), (after, keys_after))]
    if ends[0] == ends[1]:
        return Difference(0, None)
    shared = set(keys_before.values()) & set(keys_after.values()) - {key for end in ends for key in end.values()}
    tails = [_tail(before, keys_before, shared), _tail(after, keys_after, shared)]
    feeds = _noise({v.name or "": v for tail in tails for v in tail.graph.inputs})
    outputs = [_run(tail, feeds) for tail in tails]
    return Difference(len(tails[1].graph), compare_outputs(_NOISE_NAME, *outputs))


def _value_keys(model: ir.Model) -> Keys:
    """A key per value such that equal keys mean equal values: how the value is made, down to inputs and weights."""
    keys: Keys = {value: ("input", value.name) for value in model.graph.inputs}
    keys.update({value: _tensor_key(value) for value in model.graph.initializers.values()})
    for node in model.graph:
        made_from = tuple(keys[value] if value is not None else None for value in node.inputs)
        recipe = (node.domain, node.op_type, _attributes(node), made_from)
        # Hashed, so that keys do not grow with the depth of the graph.
        digest = hashlib.sha256(repr(recipe).encode()).hexdigest()
        keys.update({output: (digest, index) for index, output in enumerate(node.outputs)})
    return keys


def _tensor_key(value: ir.Value) -> Hashable:
    tensor = value.const_value
    if tensor is None or tensor.nbytes >= LARGE_TENSOR_BYTES:
        return "shared", id(tensor)
    return str(tensor.dtype), tuple(tensor.shape), tensor.tobytes()


def _attributes(node: ir.Node) -> tuple[tuple[str, Hashable], ...]:
    return tuple(sorted((name, _attribute_key(attribute)) for name, attribute in node.attributes.items()))


def _attribute_key(attribute: ir.Attr) -> Hashable:
    """A tensor by its bytes, since printing one leaves values out; a subgraph equals nothing but itself."""
    value = attribute.value
    if attribute.type is ir.AttributeType.TENSOR:
        return str(value.dtype), tuple(value.shape), value.tobytes()
    if attribute.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
        return id(value)
    return str(value)


def _tail(model: ir.Model, keys: Keys, shared: set[Hashable]) -> ir.Model:
    """The part of `model` that makes its outputs from values of `shared`, named by their keys."""
    outputs = list(model.graph.outputs)
    bounds: dict[ir.Value, None] = {}
    pending = list(outputs)
    for value in pending:
        producer = value.producer()
        for source in producer.inputs if producer is not None else ():
            if source is None or source.is_initializer():
                continue
            if keys[source] in shared:
                bounds[source] = None
            elif source not in pending:
                pending.append(source)
    graph = ir.convenience.extract(model.graph, list(bounds), outputs)
    for value, original in zip(graph.inputs, bounds, strict=True):
        value.name = _feed_name(keys[original])
    return ir.Model(graph, ir_version=model.ir_version)


def _feed_name(key: Hashable) -> str:
    return "value_" + hashlib.sha256(repr(key).encode()).hexdigest()[:16]


def _noise(values: Mapping[str, ir.Value]) -> dict[str, npt.NDArray[np.float32]]:
    rng = np.random.default_rng(_NOISE_SEED)
    shapes = {name: value.shape.numpy() if value.shape is not None else () for name, value in values.items()}
    return {name: rng.standard_normal(shape, dtype=np.float32) for name, shape in shapes.items()}


def _run(tail: ir.Model, feeds: Mapping[str, npt.NDArray[np.float32]]) -> dict[str, npt.NDArray[Any]]:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "tail.onnx"
        write_model(tail, path)
        with OrtRunner(path) as runner:
            return runner.run({spec.name: feeds[spec.name] for spec in runner.inputs})
