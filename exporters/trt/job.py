"""What is to be built, settled before anything is: source, precision, TensorRT, GPU, and the key of it all."""

import hashlib
import json
from dataclasses import dataclass

import onnx_ir as ir

from exporters.reduce import BF16_OPSET
from exporters.trt.options import EngineOptions
from exporters.trt.timing_cache import require_effect
from fcn_deploy.bundle import Bundle, open_bundle
from fcn_deploy.errors import ProviderError, UsageError
from fcn_deploy.hashing import file_sha256
from fcn_deploy.model_info import Precision
from fcn_deploy.photos import find_images
from fcn_deploy.runtime.cuda_driver import Device, current_device
from fcn_deploy.runtime.tensorrt_flavour import Flavour
from fcn_deploy.version import __version__


@dataclass(frozen=True)
class Job:
    """Everything that decides what is built.

    Attributes:
        bundle: the source.
        precision: what the engine is to compute in.
        source_sha256: of the source's ONNX file.
        flavour: the TensorRT that builds.
        device: the GPU to build for; None when compute capabilities are named instead.
        key: hash of all of it.
    """

    bundle: Bundle
    precision: Precision
    source_sha256: str
    flavour: Flavour
    device: Device | None
    key: str


def device_for(flavour: Flavour, options: EngineOptions) -> Device | None:
    """The GPU to build for; None when compute capabilities are named instead.

    Raises:
        UsageError: options that this TensorRT does not have.
        ProviderError: there is no GPU, and none is named.
    """
    if options.capabilities and not flavour.builds_without_gpu:
        raise UsageError(
            f"compute capability {', '.join(options.capabilities)}: {flavour} builds for the GPU it runs on only",
            remedy="Leave --compute-capability out, or pass --flavour tensorrt-rtx.",
        )
    if options.timing_cache is not None:
        require_effect(flavour)
    for text in options.capabilities:
        flavour.capability(text)
    if options.capabilities:
        return None
    device = current_device()
    if device is None:
        others = (
            f"--compute-capability {','.join(flavour.capabilities)}, or some of these" if flavour.capabilities else ""
        )
        raise ProviderError(
            f"{flavour} builds for the GPU at hand, and there is none",
            remedy=f"Pass {others}." if others else "Run this on the machine that is to run the engine.",
        )
    return device


def job_of(options: EngineOptions, flavour: Flavour, device: Device | None) -> Job:
    """Open the source, settle the precision, and hash all that decides what is built.

    Raises:
        BundleError: the source is damaged, or no model of this toolkit.
        UsageError: the source cannot have the precision asked for.
    """
    bundle = open_bundle(options.source)
    precision = _precision(options, bundle)
    sha256 = file_sha256(bundle.model_path)
    images = find_images([str(path) for path in options.calibration])
    facts = {
        "fcn_deploy": __version__,
        "model": sha256,
        "precision": precision,
        "calibration": [file_sha256(path) for path in images],
        "flavour": [flavour.name, flavour.version],
        "capabilities": options.capabilities,
        "device": [device.name, device.capability, device.driver] if device else None,
        "workspace_mb": options.workspace_mb,
    }
    key = hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()
    return Job(bundle, precision, sha256, flavour, device, key)


def require_signed(bundle: Bundle, source: str) -> None:
    """Check that TensorRT can read a bundle's 8-bit maps, if it has any.

    Args:
        bundle: the bundle.
        source: what the user calls it.

    Raises:
        UsageError: they are unsigned.
    """
    unsigned = next((node for node in bundle.model.graph if _rounds_unsigned(node)), None)
    if unsigned is not None:
        raise UsageError(
            f"{source} has 8-bit maps in uint8, at {unsigned.name} first: for CPUs; TensorRT takes int8",
            remedy="Export it again with --target tensorrt.",
        )


def _rounds_unsigned(node: ir.Node) -> bool:
    return node.op_type == "QuantizeLinear" and node.outputs[0].dtype is ir.DataType.UINT8


def _precision(options: EngineOptions, bundle: Bundle) -> Precision:
    own = bundle.info.precision
    wanted = options.precision or own
    if wanted is not own and own is not Precision.FP32:
        raise UsageError(
            f"{options.source} is {own} already and cannot become {wanted}",
            remedy=f"Export the checkpoint again with --precision {wanted}, or in fp32.",
        )
    if wanted is Precision.INT8 and own is not wanted:
        raise UsageError("an engine is not quantized while it is built", remedy="Export with --precision int8 first.")
    if wanted is own and options.calibration:
        raise UsageError(
            f"calibration images are for reducing a float32 graph, and {options.source} stays {own}",
            remedy="Leave --calibration out, or ask for another --precision.",
        )
    require_signed(bundle, str(options.source))
    opset = bundle.model.opset_imports.get("", 0)
    if wanted is Precision.BF16 and opset < BF16_OPSET:
        raise UsageError(
            f"{options.source} has opset {opset}, which has no bfloat16 convolutions; {BF16_OPSET} and later do",
            remedy=f"Export it again with --opset {BF16_OPSET}, or pass --precision fp16.",
        )
    return wanted
