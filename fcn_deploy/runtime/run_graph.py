"""Run a graph that is in memory: ONNX Runtime runs it from a temporary file."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy.typing as npt
import onnx_ir as ir

from fcn_deploy.onnx_file import write_model
from fcn_deploy.runtime.base import Arrays
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.runtime.ort_options import OrtOptions


@contextmanager
def open_graph(model: ir.Model, options: OrtOptions | None = None) -> Iterator[OrtRunner]:
    """Open a runner for `model`, whose file is at the runner's `path` for as long as it is open.

    Raises:
        BundleError: ONNX Runtime refuses the graph.
        ProviderError: the requested provider would not run it.
    """
    with TemporaryDirectory() as folder:
        path = Path(folder) / "graph.onnx"
        write_model(model, path)
        with OrtRunner(path, options) as runner:
            yield runner


def run_graph(model: ir.Model, feeds: Arrays, options: OrtOptions | None = None) -> dict[str, npt.NDArray[Any]]:
    """Run `model` once; `feeds` may hold more than its inputs. Returns outputs by name, and raises as `open_graph`."""
    with open_graph(model, options) as runner:
        return runner.run({spec.name: feeds[spec.name] for spec in runner.inputs})
