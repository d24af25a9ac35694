"""PyTorch itself, on the CPU: the reference every artifact is compared with."""

import contextlib
import sys
from typing import Any

import numpy.typing as npt
import torch
from torch import nn

from fcn_deploy.errors import FcnDeployError, ModuleError
from fcn_deploy.model_info import INPUT_NAME, OUTPUT_NAME, TensorSpec
from fcn_deploy.models.modules import described
from fcn_deploy.runtime.base import Runner

# oneDNN adds up the products of a convolution one after the other, so that its error grows with their number: on AVX2,
# fc6's 25,088 are 2.1e-6 from float64, against 3e-7 with PyTorch's own kernel. A reference has to be closer to the
# truth than what it judges: layers of at least this many products per output use the latter (docs/parity.md).
LONG_SUM = 2048


class EagerRunner(Runner):
    """Runs a network with PyTorch.

    Args:
        network: maps N x 3 x H x W to N x K x H x W; runs in the dtype of its parameters.
        shape: N x 3 x H x W of its input.
        remark: what reports have to say about the network besides.
    """

    def __init__(self, network: nn.Module, shape: tuple[int, int, int, int], remark: str = "") -> None:
        self.network = network
        values = (*network.parameters(), *network.buffers(), torch.empty(0))
        dtype = str(next(value.dtype for value in values if value.is_floating_point())).removeprefix("torch.")
        self.name = f"PyTorch {torch.__version__} eager {dtype}{f', {remark}' if remark else ''}"
        self.inputs = (TensorSpec(INPUT_NAME, shape, dtype),)
        self._hooks = contextlib.ExitStack()

    def _open(self) -> None:
        self.network.eval()
        usual = bool(torch.backends.mkldnn.enabled)
        for layer in self.network.modules():
            if isinstance(layer, nn.Conv2d) and layer.weight[0].numel() >= LONG_SUM:
                before = layer.register_forward_pre_hook(lambda *_: _use_onednn(enabled=False))
                after = layer.register_forward_hook(lambda *_: _use_onednn(enabled=usual), always_call=True)
                self._hooks.callback(before.remove)
                self._hooks.callback(after.remove)

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        # A network of the user's own may print, and overwrite its input.
        with torch.inference_mode(), contextlib.redirect_stdout(sys.stderr):
            logits = self._logits(torch.from_numpy(feeds[INPUT_NAME].copy()))
        return {OUTPUT_NAME: logits.numpy()}

    def _logits(self, image: torch.Tensor) -> torch.Tensor:
        try:
            found = self.network(image)
        except FcnDeployError:
            raise
        except Exception as error:
            raise ModuleError(
                f"the network cannot be run on {self.inputs[0]}: {described(error)}",
                remedy="Correct its code: it has to run on any image of this shape and type.",
            ) from error
        if not isinstance(found, torch.Tensor):
            raise ModuleError(
                f"the network returns a {type(found).__name__}, not a tensor of logits",
                remedy="Pass the file it was exported from.",
            )
        return found

    def _close(self) -> None:
        self._hooks.close()


def _use_onednn(*, enabled: bool) -> None:
    torch.backends.mkldnn.enabled = enabled  # type: ignore[assignment] # declared as its descriptor
