"""Rewrites ONNX files of fixed shapes that any tool exported: simplify, rewrite exactly, write."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import onnx_ir as ir

from exporters.rewrite import Rewriting, rewrite, target_of_this_machine
from exporters.simplify import Simplification, simplify
from fcn_deploy.choices import Target
from fcn_deploy.errors import BundleError, OutputError
from fcn_deploy.onnx_file import read_model, write_model
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.storage import check_writable, staged_file

# Since this opset the bounds of Slice, Pad and Clip are inputs, as the rewrites write them.
OLDEST_OPSET = 13


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
        BundleError: `source` is not an ONNX file, has an opset before 13, or is not valid.
        OutputError: `target_path` exists already or cannot be written.
    """
    if target_path.exists() and not force:
        raise OutputError(f"{target_path} exists", remedy="Pass --force to replace it, or another path.")
    check_writable(target_path)
    with on_step(f"read {source}"):
        model = read_model(source)
        _check_opset(source, model)
        for node in model.graph:
            # Reports and new nodes are called after nodes.
            node.name = node.name or node.outputs[0].name
    with on_step("simplify the graph and compare both versions"):
        model, simplification = simplify(model)
    model, rewriting = rewrite(model, target or target_of_this_machine(), on_step=on_step)
    with on_step(f"write {target_path}"), staged_file(target_path) as staging:
        write_model(model, staging)
        size = staging.stat().st_size
    return Optimized(target_path, size, size - source.stat().st_size, simplification, rewriting)


def _check_opset(source: Path, model: ir.Model) -> None:
    opset = model.opset_imports.get("", 0)
    if opset < OLDEST_OPSET:
        raise BundleError(
            f"{source} has opset {opset}; rewrites need {OLDEST_OPSET} or newer",
            remedy="Convert it with onnx.version_converter, or export it again.",
        )
