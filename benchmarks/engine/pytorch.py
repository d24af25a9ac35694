"""PyTorch as a runtime of rows, eager or compiled, and its events and streams for timing a GPU.

Rows of other runtimes do not load it: it would add 0.3 GB to their memory.
"""

from collections.abc import Callable
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from benchmarks.engine.cases import Case, ComputePrecision, Runtime
from benchmarks.engine.workspace import Workspace
from fcn_deploy.choices import ChannelOrder, Provider
from fcn_deploy.model_info import INPUT_NAME, LABELS_NAME, OUTPUT_NAME, PIXELS_NAME, ModelInfo
from fcn_deploy.models.rebuild import rebuild
from fcn_deploy.parity.inputs import Shape
from fcn_deploy.runtime.base import Arrays, Bound


def load_pytorch(
    case: Case, workspace: Workspace, provider: Provider, threads: int | None
) -> tuple["TorchBound", str, str]:
    """Load the network onto the device of `provider`; returns the binding, PyTorch's version, and the settings."""
    torch.set_num_threads(threads or torch.get_num_threads())
    device = torch.device("cpu" if provider is Provider.CPU else "cuda")
    network = rebuild(workspace.info, workspace.rebuild).network
    bound = TorchBound(network, case, workspace.shape, device)
    if case.end_to_end:
        bound = TorchEndToEnd(network, case, workspace.shape, device, workspace.info)
    settings = (
        f"{torch.get_num_threads()} threads" if device.type == "cpu" else "",
        "channels last" if _channels_last(case) else "",
        ("max-autotune" if case.autotune else "default mode") if case.runtime is Runtime.COMPILE else "",
    )
    return bound, str(torch.__version__), ", ".join(filter(None, settings))


class TorchBound(Bound):
    """A PyTorch network, eager or compiled, with PyTorch's default kernels, unlike the parity reference.

    Input and output are on `device`; the output stays there until it is downloaded.
    """

    def __init__(self, network: nn.Module, case: Case, shape: Shape, device: torch.device) -> None:
        self._device = device
        self._dtype = torch.float16 if case.precision is ComputePrecision.FP16 else torch.float32
        self._format = torch.channels_last if _channels_last(case) else torch.contiguous_format
        set_tf32(on=case.precision is ComputePrecision.TF32)
        module = network.eval().to(device, self._dtype)
        module = module.to(memory_format=self._format)  # type: ignore[call-overload] # not in PyTorch's stubs
        self._call: Any = module
        if case.runtime is Runtime.COMPILE:
            self._call = torch.compile(module, mode="max-autotune" if case.autotune else None)
        image = torch.empty(shape, dtype=self._dtype, device=device)
        self._image = image.contiguous(memory_format=self._format)
        self._logits = torch.empty(0)

    def upload(self, feeds: Arrays) -> None:
        """Copy the input to the device, in the network's precision and layout."""
        self._image.copy_(torch.from_numpy(feeds[INPUT_NAME]))
        self.wait()

    def launch(self) -> None:
        """Begin to compute the logits on the device."""
        with torch.inference_mode():
            self._logits = self._call(self._image)

    def wait(self) -> None:
        """Wait until the device is idle."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Return the logits as float32 on the host."""
        return {OUTPUT_NAME: self._logits.float().contiguous().cpu().numpy()}


class TorchEndToEnd(TorchBound):
    """The same from uint8 RGB on the host to uint8 labels on the host; everything between runs on the device."""

    def __init__(self, network: nn.Module, case: Case, shape: Shape, device: torch.device, info: ModelInfo) -> None:
        super().__init__(network, case, shape, device)
        self._info, preprocessing = info, info.preprocessing
        self._mean, self._std = (
            torch.tensor(values, device=device).view(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std)
        )
        self._pixels = torch.empty(0)
        self._labels = torch.empty(0)

    def upload(self, feeds: Arrays) -> None:
        """Keep the pixels on the host: copying them is part of the run."""
        self._pixels = torch.from_numpy(feeds[PIXELS_NAME])

    def launch(self) -> None:
        """Upload, pre-process, compute, take the largest logit, and download."""
        with torch.inference_mode():
            image = self._preprocessed(self._pixels.to(self._device).permute(0, 3, 1, 2))
            logits = self._call(image.to(self._dtype).contiguous(memory_format=self._format))
            binary = logits.shape[1] == 1
            labels = logits[:, 0] > self._info.boundary if binary else logits.argmax(1)
            self._labels = labels.to(torch.uint8).cpu()

    def _preprocessed(self, planes: torch.Tensor) -> torch.Tensor:
        """Do what `Preprocessing.apply` does, without the operations that change nothing."""
        preprocessing = self._info.preprocessing
        found = (planes.flip(1) if preprocessing.channel_order is ChannelOrder.BGR else planes).float()
        if preprocessing.scale != 1:
            found = found * preprocessing.scale
        found = found - self._mean
        return found if set(preprocessing.std) == {1.0} else found / self._std

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Return the labels, which are on the host already."""
        return {LABELS_NAME: self._labels.numpy()}


def _channels_last(case: Case) -> bool:
    return case.precision is ComputePrecision.FP16


def set_tf32(*, on: bool) -> None:
    """Turn TF32 for CUDA's float32 products on or off, and let cuDNN try several algorithms."""
    # The older switches: torch.export reads them, and PyTorch refuses that if the newer ones differ.
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cudnn.benchmark = True


def own_stream() -> int:
    """Make a new stream PyTorch's current one and return its handle; PyTorch's events time what runs on it."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.set_stream(stream)
    return int(stream.cuda_stream)


def between_events_ns(launch: Callable[[], object]) -> int:
    """Return the nanoseconds the GPU needs for what `launch` puts on the current stream without waiting for it."""
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    launch()
    end.record()
    end.synchronize()
    return int(start.elapsed_time(end) * 1e6)
