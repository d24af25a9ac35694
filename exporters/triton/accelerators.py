"""ONNX Runtime's providers inside Triton, under the names of its ONNX Runtime backend."""

from collections.abc import Mapping

from exporters.triton.options import PackageOptions
from exporters.triton.served import Placement
from fcn_deploy.model_info import PIXELS_NAME, Precision
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.provider import Provider

_MIB = 2**20
_PRECISION_MODES = {Precision.FP32: "FP32", Precision.FP16: "FP16", Precision.INT8: "INT8"}


def onnx_placement(options: PackageOptions, precision: Precision, shape: tuple[int, int, int, int]) -> Placement:
    """Where an ONNX model runs: on a CPU, or on every GPU with the options this toolkit compares models under.

    Args:
        options: what was asked for.
        precision: what the model computes in; TensorRT is allowed nothing less.
        shape: N, 3, H, W of the largest run.
    """
    provider = options.provider or Provider.CPU
    if provider is Provider.CPU:
        return Placement(options.instances)
    # Triton's own default rounds products to TF32; and nodes that TensorRT leaves run under these options too.
    cuda = ("cuda", OrtOptions(Provider.CUDA).provider_options())
    if provider is Provider.CUDA:
        return Placement(options.instances, gpu=True, accelerators=(cuda,))
    tensorrt = ("tensorrt", _tensorrt_options(options, precision, shape))
    return Placement(options.instances, gpu=True, accelerators=(tensorrt, cuda))


def _tensorrt_options(
    options: PackageOptions, precision: Precision, shape: tuple[int, int, int, int]
) -> Mapping[str, str]:
    chosen = {"precision_mode": _PRECISION_MODES[precision]}
    if options.workspace_mb is not None:
        chosen["max_workspace_size_bytes"] = str(options.workspace_mb * _MIB)
    if options.engine_cache is not None:
        chosen |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": options.engine_cache}
    batch, _, height, width = shape
    if batch > 1:
        # One engine for every batch, built when the model is loaded instead of when a batch is first seen.
        sizes = {"min": 1, "opt": batch, "max": batch}
        profiles = {name: f"{PIXELS_NAME}:{size}x{height}x{width}x3" for name, size in sizes.items()}
        chosen |= {f"trt_profile_{name}_shapes": profile for name, profile in profiles.items()}
    return chosen
