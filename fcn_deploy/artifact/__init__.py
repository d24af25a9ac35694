"""What every command works on: a bundle, a bare ONNX file, or a TensorRT engine."""

from pathlib import Path
from typing import Protocol

from fcn_deploy.artifact.bundle import Bundle, open_bundle
from fcn_deploy.artifact.engine import PLAN_SUFFIX, Engine, open_engine
from fcn_deploy.model_info import ModelInfo


class Artifact(Protocol):
    """What bundles, ONNX files and engines have in common."""

    @property
    def path(self) -> Path:
        """As the user named it."""

    @property
    def model_path(self) -> Path:
        """The file that runs: `model.onnx`, another ONNX file, or the plan."""

    @property
    def model_sha256(self) -> str:
        """SHA-256 of that file, in hex."""

    @property
    def info(self) -> ModelInfo:
        """The model's facts; raises BundleError for an ONNX file that this toolkit did not write."""

    @property
    def input_shape(self) -> tuple[int, int, int, int]:
        """N, 3, H, W; raises BundleError when the model has no such input."""

    @property
    def photos(self) -> tuple[Path, ...]:
        """The calibration photos that lie beside the model; empty without any."""

    @property
    def has_graph(self) -> bool:
        """Whether it is an ONNX graph, to be run on a provider and compared layer by layer; an engine is not."""

    def copy_to(self, folder: Path, name: str) -> str:
        """Copy every file that `open_artifact` needs into `folder`; returns the name of what to open there."""


def open_artifact(path: Path) -> Bundle | Engine:
    """Open a bundle's directory, an ONNX file, or a `.plan`.

    Raises:
        BundleError: it is missing, damaged, or not what its manifest or sidecar says.
    """
    return open_engine(path) if is_engine(path) else open_bundle(path)


def is_engine(path: Path) -> bool:
    """Return whether a path names a TensorRT engine, by its suffix alone."""
    return path.suffix == PLAN_SUFFIX


def model_name(path: Path) -> str:
    """Return an artifact's name: that of its file without `.onnx` or `.plan`, or of its directory."""
    # `.` and `..` have no name of their own.
    resolved = path.resolve()
    return resolved.stem if resolved.suffix in (".onnx", PLAN_SUFFIX) else resolved.name
