"""What most users of ONNX Runtime write: `session.run` with arrays on the host."""

from typing import Any

import numpy.typing as npt

from fcn_deploy.runtime.base import Arrays, Bound
from fcn_deploy.runtime.ort import OrtRunner


class HostSession(Bound):
    """An open session whose runs move the input to the device and the output back by themselves."""

    def __init__(self, runner: OrtRunner) -> None:
        self._runner = runner
        self._feeds: Arrays = {}
        self._outputs: dict[str, npt.NDArray[Any]] = {}

    def upload(self, feeds: Arrays) -> None:
        """Keep the input on the host: moving it is part of the run."""
        self._feeds = feeds

    def launch(self) -> None:
        """Move, compute, move back."""
        self._outputs = self._runner.run(self._feeds)

    def wait(self) -> None:
        """Nothing is left to do when a launch returns."""

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """The outputs, which are on the host already."""
        return self._outputs
