"""From the float32 graph to the arithmetic asked for: which images it is observed on, and what became of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporters.onnx import DEFAULT_OPSET
from exporters.passes.edit import static_shape
from exporters.passes.pools import PoolMaximum
from exporters.precision.half import LIMITS, HalfReport, factors, in_half, observed_names, require_fitting, rescaled
from exporters.precision.int8 import Quantization, QuantizeOptions, quantize
from exporters.precision.observe import observe, runs
from exporters.precision.trunk import require_float32
from fcn_deploy.choices import Calibration, Precision, Target
from fcn_deploy.errors import ImageError, UsageError
from fcn_deploy.images import SAMPLE_PHOTO, find_images
from fcn_deploy.model_info import Provenance, TensorSpec
from fcn_deploy.parity.inputs import ParityInput, Shape, photo_input
from fcn_deploy.progress import OnStep, quietly

# bfloat16 convolutions came with this operator set.
BF16_OPSET = 22
MIN_AGREEMENT = 0.95

Reduction = HalfReport | Quantization


@dataclass(frozen=True)
class PrecisionOptions:
    """What a graph is to compute in.

    Attributes:
        precision: the arithmetic.
        calibration: images, or folders of them, like those the artifact is for; int8 cannot do without.
        method: how int8's clipping thresholds are chosen; None is min-max.
        min_agreement: least mean IU between int8's labels and float's on the calibration images; None asks for
            `MIN_AGREEMENT` of trained weights, and for nothing of random ones.

    Raises:
        UsageError: no calibration where it is needed, an option of another precision, or a bound out of its bounds.
    """

    precision: Precision = Precision.FP32
    calibration: tuple[Path, ...] = ()
    method: Calibration | None = None
    min_agreement: float | None = None

    def __post_init__(self) -> None:
        if self.precision is Precision.INT8 and not self.calibration:
            raise UsageError(
                "int8 has to see what values occur, and no calibration images are given",
                remedy="Pass --calibration with a folder of at least a dozen photos like those the model is for.",
            )
        foreign = {
            "calibration images": self.calibration and self.precision is Precision.FP32,
            "a calibration method": self.method and self.precision is not Precision.INT8,
            "a least agreement": self.min_agreement is not None and self.precision is not Precision.INT8,
        }
        for what in (name for name, given in foreign.items() if given):
            raise UsageError(
                f"{what} with {self.precision}, which has no use for it",
                remedy="Leave it out, or pass --precision int8.",
            )
        if self.min_agreement is not None and not 0 < self.min_agreement <= 1:
            raise UsageError(
                f"min agreement {self.min_agreement:g} is not above 0 and at most 1",
                remedy="It is a mean IU; 0.95 is usual.",
            )

    def agreement(self, provenance: Provenance) -> float | None:
        """The least mean IU for weights of that origin; None where it is not judged.

        Labels of random weights hang on margins far below what 8 bits can keep.
        """
        if self.min_agreement is not None:
            return self.min_agreement
        return MIN_AGREEMENT if self.precision is Precision.INT8 and not provenance.untrained else None

    def check_opset(self, opset: int) -> None:
        """Refuse operator sets that do not have the arithmetic.

        Raises:
            UsageError: bfloat16 before opset 22.
        """
        if self.precision is Precision.BF16 and opset < BF16_OPSET:
            raise UsageError(
                f"opset {opset} has no bfloat16 convolutions; {BF16_OPSET} and later do",
                remedy=f"Pass --opset {BF16_OPSET}, or --precision fp16.",
            )


def default_opset(precision: Precision) -> int:
    """The oldest operator set that has the arithmetic, which is the one most runtimes know."""
    return BF16_OPSET if precision is Precision.BF16 else DEFAULT_OPSET


def calibration_inputs(options: PrecisionOptions, shape: Shape) -> tuple[ParityInput, ...]:
    """The calibration images as the network takes them; for half precision, the photo that comes along will do.

    Raises:
        ImageError: none is found, one cannot be read, or all are of one colour.
    """
    if options.precision is Precision.FP32:
        return ()
    if not options.calibration:
        return (photo_input(SAMPLE_PHOTO, shape),)
    inputs = tuple(photo_input(path, shape) for path in find_images([str(p) for p in options.calibration]))
    if not any(np.ptp(given.image, axis=(2, 3)).any() for given in inputs):
        raise ImageError(
            f"all {len(inputs)} calibration images are of one colour, and show no layer what values occur",
            remedy="Pass photos like those the model is for.",
        )
    return inputs


def reduced(
    model: ir.Model,
    options: PrecisionOptions,
    inputs: Sequence[ParityInput],
    target: Target,
    on_step: OnStep = quietly,
) -> tuple[ir.Model, Reduction | None]:
    """`model` in the arithmetic asked for; it is left as it was.

    Args:
        model: in float32, with the heads it is to have.
        options: what it is to compute in; without a least agreement, 8 bits are taken everywhere.
        inputs: what its maps are observed on, from `calibration_inputs`.
        target: what it is to run on, which decides the type of 8-bit maps.
        on_step: told what is being done.

    Raises:
        UsageError: a weight or a map is beyond the type's limit, or the graph is reduced already.
        ParityError: 8 bits do not agree with float well enough.
    """
    if options.precision is Precision.FP32:
        return model, None
    require_float32(model)
    feeds = _feeds(model, inputs)
    if options.precision is Precision.INT8:
        return quantize(
            model,
            feeds,
            QuantizeOptions(options.method or Calibration.MINMAX, target, options.min_agreement or 0.0),
            on_step,
        )
    names = observed_names(model)
    with on_step(f"observe every layer on {len(feeds)} images", runs(model, names) * len(feeds)) as advance:
        observed = observe(model, names, feeds, advance)
    scales = factors(model, observed, LIMITS[options.precision])
    require_fitting(model, observed, scales, LIMITS[options.precision])
    with on_step(f"convert to {options.precision}"):
        converted, report = in_half(rescaled(model, scales), options.precision, observed)
        if options.precision is Precision.BF16 and target is not Target.TENSORRT:
            PoolMaximum()(converted)
    return converted, replace(report, rescaled=scales)


def _feeds(model: ir.Model, inputs: Sequence[ParityInput]) -> list[Mapping[str, npt.NDArray[Any]]]:
    (value,) = model.graph.inputs
    dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
    spec = TensorSpec(str(value.name), static_shape(value) or (), dtype)
    return [{spec.name: given.feed(spec)} for given in inputs]
