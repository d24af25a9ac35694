"""What can be asked of an export."""

from dataclasses import dataclass, field, replace
from pathlib import Path

from exporters.onnx import OnnxOptions
from exporters.optimize import Optimize, Target
from exporters.reduce import PrecisionOptions
from fcn_deploy.geometry import Geometry, Variant
from fcn_deploy.model_info import Head, ImageInput, NetworkSpec
from fcn_deploy.models.checkpoints import Checkpoint
from fcn_deploy.models.weights import WeightsOptions


@dataclass(frozen=True)
class ExportOptions:
    """What to export, and where to.

    Attributes:
        variant: which FCN.
        output: the bundle's directory.
        geometry: how pools round; None takes the checkpoint family's own, floor without a checkpoint.
        num_classes: K; None takes the checkpoint's, 21 without one.
        channel_divisor: divides every width; more than 1 makes a quick stand-in for the real network. None takes the
            checkpoint's, 1 without one.
        weights: the checkpoint, or the seed of random weights.
        onnx: shapes and opset.
        optimize: how much the graph is rewritten.
        target: what the rewrites are chosen for; None takes what the machine has.
        head: what the graph gives.
        image_input: what the graph takes.
        precision: what the graph computes in.
        verify: compare with PyTorch before the bundle is written.
        force: replace an existing bundle.
        command: what was typed, for the record.

    Raises:
        UsageError: the number of classes or the divisor is out of its bounds, or the opset lacks the arithmetic.
    """

    variant: Variant
    output: Path
    geometry: Geometry | None = None
    num_classes: int | None = None
    channel_divisor: int | None = None
    weights: WeightsOptions = field(default_factory=WeightsOptions)
    onnx: OnnxOptions = field(default_factory=OnnxOptions)
    optimize: Optimize = Optimize.EXACT
    target: Target | None = None
    head: Head = Head.LOGITS
    image_input: ImageInput = ImageInput.FLOAT
    precision: PrecisionOptions = field(default_factory=PrecisionOptions)
    verify: bool = True
    force: bool = False
    command: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        self.network(None)
        self.precision.check_opset(self.onnx.opset)

    def network(self, checkpoint: Checkpoint | None) -> NetworkSpec:
        """The network to build: what is asked for, then what the checkpoint has, then the defaults."""
        found = NetworkSpec(self.variant)
        if checkpoint is not None:
            found = replace(
                found,
                geometry=checkpoint.family.geometry,
                num_classes=checkpoint.num_classes or found.num_classes,
                channel_divisor=checkpoint.channel_divisor,
            )
        names = "geometry", "num_classes", "channel_divisor"
        return replace(found, **{name: value for name in names if (value := getattr(self, name)) is not None})
