"""Which artifacts each of Triton's backends can serve, and what to do about those it cannot."""

from exporters.triton.options import PackageOptions, TritonBackend
from exporters.trt.job import require_signed
from fcn_deploy.bundle import Bundle
from fcn_deploy.errors import UsageError
from fcn_deploy.model_info import Precision
from fcn_deploy.runtime.engine_file import Engine
from fcn_deploy.runtime.provider import Provider
from fcn_deploy.runtime.tensorrt_flavour import FlavourName


def check_servable(options: PackageOptions, artifact: Bundle | Engine) -> None:
    """Check that the backend asked for can serve an artifact as it is.

    Raises:
        UsageError: it cannot; says what can.
        BundleError: a bare ONNX file that this toolkit did not write.
    """
    if isinstance(artifact, Engine):
        _check_engine(options, artifact)
    elif options.backend is TritonBackend.TENSORRT:
        raise UsageError(
            f"backend tensorrt serves engines, and {options.source} is an ONNX model",
            remedy=f"Build one with `fcn-deploy tensorrt {options.source}`, or pass --backend onnxruntime "
            "--provider tensorrt.",
        )
    elif options.backend is TritonBackend.ONNXRUNTIME:
        _check_precision(options, artifact)
    if options.queue_delay_us is not None and not _forms_batches(options, artifact):
        raise UsageError(
            f"{options.source} has no batch that requests could be put together in, so none waits in a queue",
            remedy="Leave --queue-delay out, or export with --batch 2 or more.",
        )


def _forms_batches(options: PackageOptions, artifact: Bundle | Engine) -> bool:
    return artifact.input_shape[0] > 1 and options.backend is not TritonBackend.TENSORRT


def _check_engine(options: PackageOptions, engine: Engine) -> None:
    if options.backend is TritonBackend.ONNXRUNTIME:
        raise UsageError(
            f"{options.source} is a TensorRT engine; backend onnxruntime serves ONNX models",
            remedy="Pass --backend tensorrt, or the bundle that the engine was built from.",
        )
    if options.backend is TritonBackend.TENSORRT and engine.flavour is FlavourName.RTX:
        raise UsageError(
            f"{options.source} was built by TensorRT-RTX, whose engines Triton's TensorRT backend cannot read",
            remedy="Build it with `fcn-deploy tensorrt --flavour tensorrt` on the GPU that is to serve it, "
            "or pass --backend python.",
        )
    if options.provider is not None:
        raise UsageError(
            f"provider {options.provider}: {options.source} is an engine, which runs with the TensorRT that built it",
            remedy="Leave --provider out: it is for ONNX models.",
        )


def _check_precision(options: PackageOptions, bundle: Bundle) -> None:
    """Where Triton's ONNX Runtime would compute something else than this toolkit's parity check judged."""
    precision, provider = bundle.info.precision, options.provider or Provider.CPU
    if provider is Provider.CPU and precision is Precision.INT8:
        raise UsageError(
            f"{options.source} is int8: on CPUs without VNNI its 8-bit products would saturate, and Triton's "
            "ONNX Runtime backend has no option against it",
            remedy="Pass --backend python, which has it.",
        )
    if provider is Provider.CPU and precision is not Precision.FP32:
        raise UsageError(
            f"{options.source} is {precision}, for which ONNX Runtime has no kernels on CPUs",
            remedy="Pass --provider cuda, or --backend python, which rounds on a CPU as a GPU does.",
        )
    if provider is Provider.TENSORRT and precision is Precision.BF16:
        raise UsageError(
            f"{options.source} is bf16, which is none of the precisions that Triton lets TensorRT have",
            remedy="Pass --provider cuda, or build an engine with `fcn-deploy tensorrt` and pass --backend tensorrt.",
        )
    if provider is Provider.TENSORRT:
        require_signed(bundle, str(options.source))
