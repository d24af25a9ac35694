"""Rewrites ONNX files of fixed shapes that any tool exported: simplify, rewrite exactly, write."""

from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporters.equivalence import check_graph
from exporters.onnx import free_name
from exporters.rewrite import Rewriting, rewrite, target_of_this_machine
from exporters.simplify import Simplification, simplify
from fcn_deploy.choices import Target
from fcn_deploy.errors import BundleError, OutputError, ParityError
from fcn_deploy.graph import layers, static_shape
from fcn_deploy.onnx_check import shape_text
from fcn_deploy.onnx_file import read_model, write_model
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.storage import check_writable, staged_file

# Since this opset the bounds of Slice, Pad and Clip are inputs, as the rewrites write them.
OLDEST_OPSET = 13
# The largest map of an image that `export` accepts, conv1_1's of 4096 x 4096 pixels, has 1.2e9.
MAX_ELEMENTS = 2**31


@dataclass(frozen=True)
class Optimized:
    """A rewritten file.

    Attributes:
        path: the file.
        file_bytes: its size.
        grown_bytes: its size minus that of the original file.
        simplification: what simplifying changed.
        rewriting: what the exact rewrites did.
    """

    path: Path
    file_bytes: int
    grown_bytes: int
    simplification: Simplification
    rewriting: Rewriting

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON."""
        facts = {"path": str(self.path), "file_bytes": self.file_bytes, "grown_bytes": self.grown_bytes}
        return facts | {"simplification": asdict(self.simplification), "rewriting": self.rewriting.to_dict()}


def optimize(
    source: Path, target_path: Path, target: Target | None = None, *, force: bool = False, on_step: OnStep = quietly
) -> Optimized:
    """Simplify and rewrite the model in `source`, comparing it pass by pass, and write it to `target_path`.

    Args:
        source: an ONNX file.
        target_path: the file to write.
        target: the device that rewrites are chosen for; None uses this machine's.
        force: replace an existing file.
        on_step: called with every step.

    Raises:
        BundleError: `source` is not an ONNX file, has an opset before 13, is not valid, or has values of more than
            `MAX_ELEMENTS`; names the node or value.
        OutputError: `target_path` exists already or cannot be written.
    """
    if target_path.exists() and not force:
        raise OutputError(f"{target_path} exists", remedy="Pass --force to replace it, or another path.")
    check_writable(target_path)
    with on_step(f"read {source}"):
        model, bytes_before = read_model(source), source.stat().st_size
        _check(source, model)
        _name_nodes(model)
    with on_step("simplify the graph and compare both versions"):
        model, simplification = simplify(model)
    model, rewriting = rewrite(model, target or target_of_this_machine(), on_step=on_step)
    with on_step(f"write {target_path}"), staged_file(target_path) as staging:
        write_model(model, staging)
        size = staging.stat().st_size
    return Optimized(target_path, size, size - bytes_before, simplification, rewriting)


def _name_nodes(model: ir.Model) -> None:
    """Give every node a name of its own, after which reports and new nodes are called."""
    taken: set[str] = set()
    for node in model.graph:
        made = node.outputs[0].name if node.outputs else None
        node.name = free_name(node.name or made or node.op_type.lower(), taken)


def _check(source: Path, model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise BundleError(
            f"{source} has opset {opset}; rewrites need {OLDEST_OPSET} or newer",
            remedy="Convert it with onnx.version_converter, or export it again.",
        )
    try:
        check_graph(model)
    except ParityError as error:
        raise BundleError(f"{source}: {error.problem}", remedy="Repair it with the tool that wrote it.") from error
    shapes = [(str(value.name), static_shape(value) or ()) for value in model.graph.inputs]
    shapes += [(f"the output of {layer.name or layer.operator}", layer.shape) for layer in layers(model)]
    for name, shape in shapes:
        if prod(shape) > MAX_ELEMENTS:
            raise BundleError(
                f"{source}: {name} has {prod(shape)} elements ({shape_text(shape)}); at most {MAX_ELEMENTS} are "
                "computed to compare graphs",
                remedy="Export it for smaller images or batches.",
            )
