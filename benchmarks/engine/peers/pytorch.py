"""PyTorch, eager and compiled, as its users run it: with its own kernels throughout, unlike the parity reference."""

from typing import Any

import numpy.typing as npt
import torch

from benchmarks.engine.cases import Case, Precision, Runtime
from fcn_deploy.model_info import INPUT_NAME, LABELS_NAME, MEAN_BGR, OUTPUT_NAME, PIXELS_NAME
from fcn_deploy.models.fcn import FCN
from fcn_deploy.parity.inputs import Shape
from fcn_deploy.runtime.base import Arrays, Bound


def describe(case: Case, *, on_gpu: bool) -> str:
    """What was set, e.g. `2 threads, channels last`."""
    mode = "max-autotune" if case.autotune else "default mode"
    parts = ["" if on_gpu else f"{torch.get_num_threads()} threads", "channels last" if _channels_last(case) else ""]
    parts += [mode] if case.runtime is Runtime.COMPILE else []
    return ", ".join(part for part in parts if part)


class TorchBound(Bound):
    """A network on `device`, its input there too; the output stays there until it is downloaded."""

    def __init__(self, network: FCN, case: Case, shape: Shape, device: torch.device) -> None:
        self._device = device
        self._dtype = torch.float16 if case.precision is Precision.FP16 else torch.float32
        self._format = torch.channels_last if _channels_last(case) else torch.contiguous_format
        set_tf32(on=case.precision is Precision.TF32)
        module = network.eval().to(device, self._dtype)
        module = module.to(memory_format=self._format)  # type: ignore[call-overload] # not in PyTorch's stubs
        self._call: Any = module
        if case.runtime is Runtime.COMPILE:
            self._call = torch.compile(module, mode="max-autotune" if case.autotune else None)
        image = torch.empty(shape, dtype=self._dtype, device=device)
        self._image = image.contiguous(memory_format=self._format)
        self._logits = torch.empty(0)

    def upload(self, feeds: Arrays) -> None:
        """Copy the input to the device, in the network's arithmetic and layout."""
        self._image.copy_(torch.from_numpy(feeds[INPUT_NAME]))
        self.wait()

    def launch(self) -> None:
        """Begin to compute the logits on the device."""
        with torch.inference_mode():
            self._logits = self._call(self._image)

    def wait(self) -> None:
        """Wait until the device has nothing left to do."""
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """The logits as float32 on the host."""
        return {OUTPUT_NAME: self._logits.float().contiguous().cpu().numpy()}


class TorchEndToEnd(TorchBound):
    """The same from uint8 RGB on the host to uint8 labels on the host; everything between runs on the device."""

    def __init__(self, network: FCN, case: Case, shape: Shape, device: torch.device) -> None:
        super().__init__(network, case, shape, device)
        self._mean = torch.tensor(MEAN_BGR, device=device).view(1, 3, 1, 1)
        self._pixels = torch.empty(0)
        self._labels = torch.empty(0)

    def upload(self, feeds: Arrays) -> None:
        """Keep the pixels on the host: moving them is part of the run."""
        self._pixels = torch.from_numpy(feeds[PIXELS_NAME])

    def launch(self) -> None:
        """Everything: move, pre-process, compute, take the largest logit, move back."""
        with torch.inference_mode():
            image = self._pixels.to(self._device).permute(0, 3, 1, 2).flip(1).float() - self._mean
            image = image.to(self._dtype).contiguous(memory_format=self._format)
            self._labels = self._call(image).argmax(1).to(torch.uint8).cpu()

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """The labels, which are on the host already."""
        return {LABELS_NAME: self._labels.numpy()}


def _channels_last(case: Case) -> bool:
    return case.precision is Precision.FP16


def set_tf32(*, on: bool) -> None:
    """Let CUDA round float32 products to TF32, or not; also lets cuDNN try its algorithms out."""
    # The older pair of switches: PyTorch refuses to read it once the newer ones disagree, and torch.export reads it.
    torch.backends.cuda.matmul.allow_tf32 = on
    torch.backends.cudnn.allow_tf32 = on
    torch.backends.cudnn.benchmark = True
