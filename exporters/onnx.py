"""A network as an ONNX graph of fixed shapes, with names a person can read."""

import contextlib
import logging
import warnings
from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir
import torch
from torch import Tensor, nn

from exporters.naming import name_after_layers
from fcn_deploy.errors import UsageError
from fcn_deploy.model_info import INPUT_NAME, OUTPUT_NAME
from fcn_deploy.models.vgg import INPUT_CHANNELS

# The exporter writes 18 natively and newer opsets by conversion; newer ones miss CUDA kernels in ONNX Runtime.
DEFAULT_OPSET = 18
OPSETS = range(18, 24)
MAX_PIXELS = 4096 * 4096


@dataclass(frozen=True)
class OnnxOptions:
    """The fixed shape and the operator set of an exported graph.

    Attributes:
        height: rows of the input, in pixels.
        width: columns of the input, in pixels.
        batch: images per run.
        opset: version of ONNX's operator set.

    Raises:
        UsageError: a value out of its bounds.
    """

    height: int = 500
    width: int = 500
    batch: int = 1
    opset: int = DEFAULT_OPSET

    def __post_init__(self) -> None:
        if self.batch < 1:
            raise UsageError(f"batch {self.batch} is below 1", remedy="Pass a --batch of at least 1.")
        if self.batch * self.height * self.width > MAX_PIXELS:
            raise UsageError(
                f"{self.batch} x {self.height} x {self.width} pixels: at most {MAX_PIXELS} fit one run "
                "(conv1_1's map alone then takes 4 GB)",
                remedy="Pass a smaller --size or --batch.",
            )
        if self.opset not in OPSETS:
            raise UsageError(
                f"opset {self.opset} is not between {OPSETS[0]} and {OPSETS[-1]}",
                remedy=f"Leave --opset out: {DEFAULT_OPSET} has kernels in every ONNX Runtime provider.",
            )

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """N x 3 x H x W of the input."""
        return self.batch, INPUT_CHANNELS, self.height, self.width


class ExportWrapper(nn.Module):
    """What the graph computes: adapts a network, which knows nothing of export, to named inputs and outputs."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, image: Tensor) -> Tensor:
        """Logits of `image`; the argument's name becomes the input's."""
        logits: Tensor = self.network(image)
        return logits


def export_graph(network: nn.Module, options: OnnxOptions) -> ir.Model:
    """Export `network` in eval mode; its graph shares the network's weights in memory.

    The graph takes `image`, float32 N x 3 x H x W, and gives `logits`, float32 N x K x H x W. Nodes and values are
    named after layers; every shape and crop is a constant.
    """
    wrapper = ExportWrapper(network).eval()
    with _quiet_exporter():
        program = torch.onnx.export(
            wrapper,
            (torch.zeros(options.shape),),
            dynamo=True,
            opset_version=options.opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            verbose=False,
        )
    if program is None or program.model.opset_imports[""] != options.opset:
        raise UsageError(f"torch.onnx.export cannot write opset {options.opset}", remedy="Leave --opset out.")
    name_after_layers(program.model)
    return _detached(program.model)


def _detached(model: ir.Model) -> ir.Model:
    """A copy that alone holds the weights.

    onnxscript's rewrite rules keep the last graph they saw for the life of the process, and with it every weight.
    """
    copy = model.clone()
    for value in model.graph.initializers.values():
        value.const_value = None
    return copy


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence remarks about torchvision, which is not used here, and about the exporter's own deprecations."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", (FutureWarning))
            warnings.simplefilter("ignore", (DeprecationWarning))
            yield
    finally:
        logger.setLevel(level)
