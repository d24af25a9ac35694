"""What every command works on: a bundle, a bare ONNX file, or a TensorRT engine."""

from pathlib import Path

from fcn_deploy.artifact.bundle import Bundle, IsKnown, never_known, open_bundle
from fcn_deploy.artifact.engine import PLAN_SUFFIX, Engine, open_engine

# A bundle stands for a bare ONNX file too. Both classes have the same properties, and `copy_to`.
Artifact = Bundle | Engine


def open_artifact(path: Path, is_known: IsKnown = never_known, *, with_graph: bool = True) -> Artifact:
    """Open a bundle's directory, an ONNX file or a `.plan`; raises BundleError if it is missing or damaged.

    A bundle's files that are known to have the recorded hash are not read again, and without `with_graph` its graph
    only when it is used.
    """
    return open_engine(path) if is_engine(path) else open_bundle(path, is_known, with_graph=with_graph)


def is_engine(path: Path) -> bool:
    """Return whether a path names a TensorRT engine, by its suffix alone."""
    return path.suffix == PLAN_SUFFIX


def model_name(path: Path) -> str:
    """Return an artifact's name: that of its file without `.onnx` or `.plan`, or of its directory."""
    # `.` and `..` have no name of their own; a link's target may be called by a hash.
    named = path.resolve() if path.name in ("", "..") else path
    return named.stem if named.suffix in (".onnx", PLAN_SUFFIX) else named.name
