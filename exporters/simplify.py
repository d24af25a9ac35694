"""Simplifies a graph with onnxsim, without its weights, and compares the result with the original."""

from dataclasses import dataclass

import onnx
import onnx_ir as ir
from google.protobuf.message import DecodeError

from exporters import simplifier
from exporters.equivalence import check_graph, compare_graphs
from exporters.onnx import name_as_before
from fcn_deploy.errors import BundleError, ParityError
from fcn_deploy.graph import operator_counts, typed_skeleton
from fcn_deploy.onnx_file import large_initializers

# Folding may write out large constants; a graph without its weights should not grow by more than this.
MAX_GROWTH_BYTES = 64 * 1024


@dataclass(frozen=True)
class Simplification:
    """The outcome of simplifying a graph."""

    before: dict[str, int]  # nodes per operator as exported
    after: dict[str, int]  # nodes per operator as simplified
    refused: str | None = None  # why the simplified graph is not used, or None when it is
    difference: float | None = None  # max error / range between the two, where they are not equal by structure
    compared_nodes: int = 0  # nodes that differ in structure and were re-run to compare them

    @property
    def nodes_before(self) -> int:
        """Return the number of nodes as exported."""
        return sum(self.before.values())

    @property
    def nodes_after(self) -> int:
        """Return the number of nodes as simplified."""
        return sum(self.after.values())


def simplify(model: ir.Model) -> tuple[ir.Model, Simplification]:
    """Simplify a copy of `model` that shares its weights.

    The simplified graph passes ONNX's checker with full shape inference, has not grown, and computes what `model`
    does; where any of that fails, `model` itself is returned with the reason.
    """
    skeleton = typed_skeleton(model).SerializeToString()
    try:
        simplified = simplifier.simplified(skeleton)
    except simplifier.SimplifierError as error:
        return _refused(model, f"onnxsim: {error}")
    growth = len(simplified) - len(skeleton)
    if growth > MAX_GROWTH_BYTES:
        return _refused(model, f"the graph grew by {growth} bytes, more than {MAX_GROWTH_BYTES}")
    try:
        candidate = _with_weights(onnx.ModelProto.FromString(simplified), model)
        check_graph(candidate)
        found = compare_graphs(model, candidate)
    except (ir.serde.SerdeError, DecodeError) as error:
        return _refused(model, f"onnxsim's graph cannot be read: {error}")
    except (ParityError, BundleError) as error:
        return _refused(model, error.problem)
    if found.beyond_rounding:
        return _refused(model, f"the graph differs from the plain one by {found.beyond_rounding}")
    name_as_before(candidate, model)
    difference = found.relative_error if found.compared_nodes else None
    counts = operator_counts(model), operator_counts(candidate)
    return candidate, Simplification(*counts, difference=difference, compared_nodes=found.compared_nodes)


def _refused(model: ir.Model, reason: str) -> tuple[ir.Model, Simplification]:
    counts = operator_counts(model)
    return model, Simplification(counts, counts, refused=reason)


def _with_weights(simplified: onnx.ModelProto, original: ir.Model) -> ir.Model:
    """Return the simplified skeleton as a model, with the original's tensors as its weights."""
    result = ir.serde.deserialize_model(simplified)
    tensors = large_initializers(original)
    inputs = {value.name for value in original.graph.inputs}
    for value in [value for value in result.graph.inputs if value.name in tensors]:
        value.const_value = tensors[value.name or ""]
        if value.name not in inputs:  # before IR version 4, initializers are inputs as well
            result.graph.inputs.remove(value)
        result.graph.initializers.add(value)
    # Remove the settings and the log that onnxsim adds.
    result.metadata_props.clear()
    result.metadata_props.update(original.metadata_props)
    return result
