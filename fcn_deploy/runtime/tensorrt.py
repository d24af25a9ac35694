"""Run a TensorRT engine on the GPU it was built for.

Buffers are allocated once, everything runs on one stream, and the run can be captured as a CUDA graph.
"""

import mmap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_deploy.artifact.engine import Device, Engine
from fcn_deploy.errors import BundleError, ProviderError
from fcn_deploy.runtime.base import Arrays, Bound, Runner
from fcn_deploy.runtime.nvidia import Cuda
from fcn_deploy.runtime.tensorrt_flavour import Flavour, find_flavour, worst

_AGAIN = "Build the engine again with `fcn-deploy tensorrt`, on this machine or for its GPU."


class TrtRunner(Runner):
    """Runs a TensorRT engine.

    Args:
        engine: the plan and its sidecar.
        cuda_graph: capture the run once and replay it.

    Attributes:
        engine_file: the plan and its sidecar.
        placement: names of the engine's layers, all of which TensorRT runs; known once the runner is open.

    Raises:
        BundleError: at once or on opening, when the plan is damaged or was built for another TensorRT or GPU.
        ProviderError: at once, when TensorRT is not installed; on opening, when there is no GPU.
    """

    def __init__(self, engine: Engine, *, cuda_graph: bool = False) -> None:
        self.engine_file = engine
        self._flavour = find_flavour(self.engine_file.flavour)
        check_version(self.engine_file, self._flavour)
        self.inputs = self.engine_file.inputs
        self.placement: Mapping[str, tuple[str, ...]] = {}
        self.name = f"{self._flavour} {self.engine_file.info.precision}{', CUDA graph' if cuda_graph else ''}"
        self._cuda_graph = cuda_graph
        self._cuda: Cuda | None = None
        self._engine: Any = None
        self._bindings: list[TrtBinding] = []

    def _open(self) -> None:
        cuda = Cuda()
        check_device(self.engine_file, cuda.device)
        cuda.make_current()
        self._cuda = cuda
        try:
            self._engine = deserialized(self._flavour, self.engine_file.path)
        except BundleError:
            self._close()
            raise
        self.placement = {str(self._flavour): _layer_names(self._flavour, self._engine)}

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        binding = self._bindings[0] if self._bindings else self.bind()
        binding.upload(feeds)
        binding.run()
        return binding.download()

    def _close(self) -> None:
        for binding in self._bindings:
            binding.close()
        self._bindings, self._engine = [], None
        if self._cuda is not None:
            self._cuda.release()
            self._cuda = None

    def bind(self) -> "TrtBinding":
        """Return the engine with fixed buffers on the GPU and a stream."""
        if self._cuda is None:
            raise RuntimeError("the runner is not open: use it as a context manager")
        binding = TrtBinding(self._cuda, self._flavour, self._engine, self.engine_file, cuda_graph=self._cuda_graph)
        self._bindings.append(binding)
        return binding


class TrtBinding(Bound):
    """An engine with fixed buffers on the GPU, from `TrtRunner.bind`; valid while the runner is open."""

    def __init__(self, cuda: Cuda, flavour: Flavour, engine: Any, described: Engine, *, cuda_graph: bool) -> None:
        self._cuda, self._log = cuda, flavour.log
        self._described = described
        self._context = flavour.context(engine, cuda_graph=cuda_graph)
        if self._context is None:
            raise ProviderError("TensorRT created no execution context", remedy="Free GPU memory, then try again.")
        self.stream = cuda.stream()
        specs = (*described.inputs, *described.outputs)
        self._buffers = {spec.name: cuda.allocate(_bytes(spec.shape, spec.dtype)) for spec in specs}
        for name, address in self._buffers.items():
            self._context.set_tensor_address(name, address)
        self._captures = cuda_graph and not flavour.captures_by_itself
        self._graph: int | None = None

    def upload(self, feeds: Arrays) -> None:
        """Copy `feeds` to the GPU."""
        arrays = {spec.name: np.ascontiguousarray(feeds[spec.name]) for spec in self._described.inputs}
        for name, array in arrays.items():
            self._cuda.to_device(self._buffers[name], array, self.stream)
        self._cuda.synchronize(self.stream)

    def launch(self) -> None:
        """Begin to compute the outputs."""
        if self._captures and self._graph is None:
            self._graph = self._captured()
        if self._graph is not None:
            self._cuda.launch_graph(self._graph, self.stream)
        else:
            self._enqueue()

    def wait(self) -> None:
        """Wait for the outputs."""
        self._cuda.synchronize(self.stream)

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Copy the outputs to the host."""
        outputs = {spec.name: np.empty(spec.shape, spec.dtype) for spec in self._described.outputs}
        for name, array in outputs.items():
            self._cuda.to_host(array, self._buffers[name], self.stream)
        self._cuda.synchronize(self.stream)
        return outputs

    def close(self) -> None:
        """Release stream, graph and buffers."""
        if self._graph is not None:
            self._cuda.destroy_graph(self._graph)
        self._context = None
        for address in self._buffers.values():
            self._cuda.free(address)
        self._buffers = {}
        self._cuda.destroy_stream(self.stream)

    def _captured(self) -> int:
        # The first run may allocate and compile, which cannot be captured.
        self._enqueue()
        self._cuda.synchronize(self.stream)
        self._cuda.begin_capture(self.stream)
        try:
            self._enqueue()
        except ProviderError:
            self._cuda.end_capture(self.stream)
            raise
        return self._cuda.end_capture(self.stream)

    def _enqueue(self) -> None:
        with self._log.listening() as messages:
            if not self._context.execute_async_v3(self.stream):
                raise ProviderError(f"TensorRT failed to run the engine: {worst(messages)}", remedy=_AGAIN)


def check_version(engine: Engine, flavour: Flavour) -> None:
    """Check that this TensorRT built the engine; raises BundleError if another version did."""
    if engine.version != flavour.version:
        raise BundleError(
            f"{engine.path} was built by {engine.flavour} {engine.version}; {flavour.version} is installed here",
            remedy=f"Build the engine again with `fcn-deploy tensorrt`, or install {engine.flavour} {engine.version}.",
        )


def check_device(engine: Engine, device: Device) -> None:
    """Check that an engine was built for a GPU; raises BundleError if it was built for another."""
    if engine.capabilities:
        fits = device.capability in engine.capabilities
    else:
        fits = engine.device is not None and (engine.device.name, engine.device.capability) == (
            device.name, device.capability,
        )  # fmt: skip
    if not fits:
        raise BundleError(f"{engine.path} was built for {engine.built_for}; this is {device}", remedy=_AGAIN)


def deserialized(flavour: Flavour, plan: Path) -> Any:
    """Load TensorRT's engine from a plan; raises BundleError in TensorRT's own words if it refuses the plan."""
    with (
        plan.open("rb") as file,
        mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data,
        flavour.log.listening() as messages,
    ):
        reason = flavour.invalidity(data)
        engine = None if reason else flavour.trt.Runtime(flavour.log.logger).deserialize_cuda_engine(data)
        if engine is None:
            raise BundleError(f"{flavour} refuses {plan}: {reason or worst(messages)}", remedy=_AGAIN)
    return engine


def _layer_names(flavour: Flavour, engine: Any) -> tuple[str, ...]:
    inspector, form = engine.create_engine_inspector(), flavour.trt.LayerInformationFormat.ONELINE
    return tuple(inspector.get_layer_information(index, form).strip() for index in range(engine.num_layers))


def _bytes(shape: tuple[int, ...], dtype: str) -> int:
    return int(np.prod(shape)) * np.dtype(dtype).itemsize
