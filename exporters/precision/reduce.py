"""Converts a float32 graph to another precision, with calibration images."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from exporters.passes.pools import PoolMaximum
from exporters.precision.half import HalfReport, convert_to_half
from exporters.precision.int8 import Quantization, quantize
from exporters.precision.options import PrecisionOptions
from fcn_deploy.choices import Calibration, Precision, Target
from fcn_deploy.errors import ImageError, UsageError
from fcn_deploy.graph import static_shape
from fcn_deploy.images import SAMPLE_PHOTO, find_images
from fcn_deploy.model_info import TensorSpec
from fcn_deploy.parity.inputs import ParityInput, Shape, photo_input
from fcn_deploy.preprocessing import Preprocessing
from fcn_deploy.progress import OnStep, quietly

Reduction = HalfReport | Quantization

_REDUCED_DTYPES = frozenset({ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.INT8})


def calibration_inputs(
    options: PrecisionOptions, shape: Shape, preprocessing: Preprocessing
) -> tuple[ParityInput, ...]:
    """Read the calibration images as inputs of the network; half precision falls back to the bundled photo.

    Raises:
        ImageError: none is found, one cannot be read, or all are of one colour.
    """
    if options.precision is Precision.FP32:
        return ()
    if not options.calibration:
        return (photo_input(SAMPLE_PHOTO, shape, preprocessing),)
    photos = find_images([str(path) for path in options.calibration])
    inputs = tuple(photo_input(path, shape, preprocessing) for path in photos)
    if not any(np.ptp(given.image, axis=(2, 3)).any() for given in inputs):
        raise ImageError(
            f"each of the {len(inputs)} calibration images has a single colour, so ranges cannot be calibrated",
            remedy="Pass photos like those the model is for.",
        )
    return inputs


def reduce_precision(
    model: ir.Model,
    options: PrecisionOptions,
    inputs: Sequence[ParityInput],
    target: Target,
    on_step: OnStep = quietly,
    *,
    boundary: float = 0.0,
) -> tuple[ir.Model, Reduction | None]:
    """Convert a copy of `model` to the precision in `options`; float32 returns `model` itself.

    The model has its final input and output heads already. Its maps are observed on `inputs`, from
    `calibration_inputs`. Without a minimum agreement, every layer of the trunk is quantized. `target`, what the graph
    is to run on, decides the type of 8-bit maps. `boundary` is that of a single class (`ModelInfo.boundary`).

    Raises:
        UsageError: a weight or a map exceeds the type's limit, or the precision is already reduced.
        ParityError: int8 does not agree with float well enough.
    """
    if options.precision is Precision.FP32:
        return model, None
    check_float32(model)
    (value,) = model.graph.inputs
    dtype = value.dtype.numpy().name if value.dtype is not None else "float32"
    spec = TensorSpec(str(value.name), static_shape(value) or (), dtype)
    feeds = [{spec.name: given.feed(spec)} for given in inputs]
    if options.precision is Precision.INT8:
        method, agreement = options.method or Calibration.MINMAX, options.min_agreement or 0.0
        chosen: dict[str, Any] = {"method": method, "target": target, "min_agreement": agreement, "boundary": boundary}
        return quantize(model, feeds, **chosen, on_step=on_step)
    converted, report = convert_to_half(model, options.precision, feeds, on_step)
    if options.precision is Precision.BF16 and target is not Target.TENSORRT:
        PoolMaximum()(converted)
    return converted, report


def check_float32(model: ir.Model) -> None:
    """Refuse a graph whose precision is reduced already: a UsageError that names a reduced weight or node."""
    reduced = [v.name for v in model.graph.initializers.values() if v.dtype in _REDUCED_DTYPES]
    reduced += [n.name for n in model.graph if n.op_type in ("QuantizeLinear", "DequantizeLinear", "QLinearConv")]
    if reduced:
        raise UsageError(
            f"the graph is already in reduced precision: {reduced[0]}", remedy="Reduce the float32 graph instead."
        )
