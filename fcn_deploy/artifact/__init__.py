"""Whatever a command is given: a bundle, a bare ONNX file, or a TensorRT engine."""

from pathlib import Path

from fcn_deploy.artifact.bundle import Bundle, open_bundle
from fcn_deploy.artifact.engine import Engine, open_engine
from fcn_deploy.choices import PLAN_SUFFIX


def open_artifact(path: Path) -> Bundle | Engine:
    """Open a bundle's directory, an ONNX file, or a `.plan`; each has `info`, `input_shape` and `model_path`.

    Raises:
        BundleError: it is missing, damaged, or not what its manifest or sidecar says.
    """
    return open_engine(path) if path.suffix == PLAN_SUFFIX else open_bundle(path)
