"""Other runtimes for CPUs: OpenVINO, ncnn and MNN. Each converts a graph and runs it in the process of its row."""

import importlib.metadata
import importlib.util
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from benchmarks.engine.cases import Case, ComputePrecision, Runtime
from benchmarks.engine.workspace import Workspace
from fcn_deploy.model_info import INPUT_NAME, OUTPUT_NAME
from fcn_deploy.runtime.base import Arrays, Bound

# The binding that is timed, the runtime's version, and its settings, for the report.
Loaded = tuple[Bound, str, str]


class HostBound(Bound):
    """A binding whose inputs and outputs are on the host, so that a run is complete when it returns."""

    def wait(self) -> None:
        """Return at once: a launch returns only when its work is complete."""


class OpenVinoBound(HostBound):
    """An ONNX file that OpenVINO has compiled for this CPU.

    Args:
        path: the file.
        precision: of the products, `f32` or `bf16`; by default OpenVINO uses bfloat16 on newer CPUs.
        threads: how many to use; None leaves it to OpenVINO.

    Attributes:
        version: of OpenVINO.
    """

    def __init__(self, path: Path, precision: str, threads: int | None) -> None:
        import openvino

        self.version: str = openvino.__version__.split("-")[0]
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": precision}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(path, "CPU", settings)
        self._request = compiled.create_infer_request()
        self._names = [port.get_any_name() for port in compiled.inputs]
        self._outputs = [port.get_any_name() for port in compiled.outputs]

    def upload(self, feeds: Arrays) -> None:
        """Copy the inputs to OpenVINO's buffers."""
        for name in self._names:
            self._request.get_tensor(name).data[:] = feeds[name]

    def launch(self) -> None:
        """Compute the outputs."""
        self._request.infer()

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Return copies of the outputs."""
        return {name: np.array(self._request.get_tensor(name).data) for name in self._outputs}


class NcnnBound(HostBound):
    """A graph that pnnx has converted for ncnn, in float32.

    Args:
        path: the ONNX file; what pnnx writes goes to `folder`.
        shape: N x 3 x H x W of its input; ncnn has no batches, so N is 1.
        folder: an empty folder.
        threads: how many to use; None leaves it to ncnn.
    """

    def __init__(self, path: Path, shape: tuple[int, ...], folder: Path, threads: int | None) -> None:
        import ncnn

        _convert_for_ncnn(path, shape, folder)
        self._size = shape[2:]
        self._net = ncnn.Net()
        options = self._net.opt
        options.num_threads = threads or options.num_threads
        options.use_fp16_packed = options.use_fp16_storage = options.use_fp16_arithmetic = False
        options.use_bf16_storage = False
        self._net.load_param(str(folder / "model.ncnn.param"))
        self._net.load_model(str(folder / "model.ncnn.bin"))
        self._matrix = ncnn.Mat
        self._image: Any = None
        self._logits: Any = None

    def upload(self, feeds: Arrays) -> None:
        """Copy the input to ncnn's layout."""
        self._image = self._matrix(feeds[INPUT_NAME][0]).clone()

    def launch(self) -> None:
        """Compute the outputs."""
        extractor = self._net.create_extractor()
        extractor.input("in0", self._image)
        failed, self._logits = extractor.extract("out0")
        if failed:
            raise RuntimeError(f"ncnn ended with {failed}")

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of the outputs."""
        # Its reshapes keep the batch as an axis of its own, its convolutions do not.
        return {OUTPUT_NAME: np.array(self._logits).reshape(1, -1, *self._size)}


def _convert_for_ncnn(path: Path, shape: tuple[int, ...], folder: Path) -> None:
    """Let pnnx write `model.ncnn.param` and `model.ncnn.bin`, with float32 weights."""
    folder.mkdir()
    (folder / "model.onnx").symlink_to(path)
    # Importing pnnx would load PyTorch.
    package = importlib.util.find_spec("pnnx")
    program = Path(str(package.origin)).with_name("pnnx") if package is not None else Path("pnnx")
    command = [str(program), "model.onnx", f"inputshape=[{','.join(map(str, shape))}]", "fp16=0"]
    run = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)  # noqa: S603 - pnnx itself
    if not (folder / "model.ncnn.param").is_file():
        raise RuntimeError(f"pnnx cannot convert the graph: {(run.stderr or run.stdout).strip()[-200:]}")


class MnnBound(HostBound):
    """A graph that MNN's converter has converted, in float32.

    Args:
        path: the ONNX file.
        converted: the file that the converter writes.
        threads: how many to use.
    """

    def __init__(self, path: Path, converted: Path, threads: int | None) -> None:
        # The converter's own command installs packages and reports its use; this is the function behind it.
        import _tools as mnn_tools
        import MNN

        arguments = ["", "-f", "ONNX", "--modelFile", str(path), "--MNNModel", str(converted), "--bizCode", "bench"]
        mnn_tools.mnnconvert(arguments)
        if not converted.is_file():
            raise RuntimeError("MNN cannot convert the graph")
        self._mnn = MNN
        settings: dict[str, Any] = {"backend": "CPU", "precision": "high"} | ({"numThread": threads} if threads else {})
        manager = MNN.nn.create_runtime_manager((settings,))
        self._net = MNN.nn.load_module_from_file(str(converted), [INPUT_NAME], [OUTPUT_NAME], runtime_manager=manager)
        self._image: Any = None
        self._logits: Any = None

    def upload(self, feeds: Arrays) -> None:
        """Copy the input to MNN's variable."""
        image = feeds[INPUT_NAME]
        self._image = self._mnn.expr.const(image, list(image.shape), self._mnn.expr.NCHW)

    def launch(self) -> None:
        """Compute the outputs; MNN computes when they are read."""
        (logits,) = self._net.forward([self._image])
        self._logits = self._mnn.expr.convert(logits, self._mnn.expr.NCHW).read()

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Return a copy of the outputs."""
        return {OUTPUT_NAME: np.array(self._logits)}


def _load_openvino(case: Case, workspace: Workspace, threads: int | None) -> Loaded:
    precision = "bf16" if case.precision is ComputePrecision.BF16 else "f32"
    bound = OpenVinoBound(workspace.graph_path(case.graph), precision, threads)
    return bound, bound.version, _settings("latency hint", threads)


def _load_ncnn(case: Case, workspace: Workspace, threads: int | None) -> Loaded:
    bound = NcnnBound(workspace.graph_path(case.graph), workspace.shape, workspace.folder / case.name, threads)
    return bound, importlib.metadata.version("ncnn"), _settings("pnnx", threads)


def _load_mnn(case: Case, workspace: Workspace, threads: int | None) -> Loaded:
    bound = MnnBound(workspace.graph_path(case.graph), workspace.folder / f"{case.name}.mnn", threads)
    return bound, importlib.metadata.version("MNN"), _settings("precision high", threads)


def _settings(said: str, threads: int | None) -> str:
    return f"{threads} threads, {said}" if threads else said


CPU_RUNTIMES: Mapping[Runtime, Callable[[Case, Workspace, int | None], Loaded]] = {
    Runtime.OPENVINO: _load_openvino,
    Runtime.NCNN: _load_ncnn,
    Runtime.MNN: _load_mnn,
}
