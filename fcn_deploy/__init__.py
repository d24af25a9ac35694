"""fcn-deploy: export fully convolutional networks to ONNX, prove the export, run it.

    import fcn_deploy as fd

    result = fd.export(fd.ExportOptions(fd.Variant.FCN8S, Path("fcn8s"), weights=fd.WeightsOptions(Path("fcn8s.pth"))))
    fd.verify(result.path, fd.VerifyOptions(checkpoint=Path("fcn8s.pth"))).parity.require()
    for prediction in fd.predict(result.path, [Path("photo.jpg")]):
        print(prediction.shares)

Everything raises subclasses of `FcnDeployError`. Names are imported when they are first used, so that importing this
package costs nothing: PyTorch is loaded by what needs it.
"""

import importlib
from typing import TYPE_CHECKING, Any

from fcn_deploy._names import MODULE_OF

__all__ = [
    "SAMPLE_CHECKPOINT",
    "SAMPLE_LABELS",
    "SAMPLE_SCENE",
    "Against",
    "AxisSizes",
    "BenchOptions",
    "BenchReport",
    "Bundle",
    "BundleError",
    "Calibration",
    "CheckpointError",
    "Comparison",
    "Dataset",
    "Engine",
    "EngineBuild",
    "EngineName",
    "EngineOptions",
    "EvaluateOptions",
    "Evaluation",
    "ExportOptions",
    "ExportResult",
    "FcnDeployError",
    "Finding",
    "FlavourName",
    "Geometry",
    "HalfReport",
    "Head",
    "ImageError",
    "ImageInput",
    "InputFileError",
    "Inspection",
    "Measurement",
    "MeasurementError",
    "ModelInfo",
    "NetworkSpec",
    "OnnxOptions",
    "Optimize",
    "Optimized",
    "OrtOptions",
    "OutputError",
    "OutputFormat",
    "Package",
    "PackageOptions",
    "PackageTarget",
    "Pair",
    "ParityError",
    "ParityReport",
    "Precision",
    "PrecisionOptions",
    "PredictOptions",
    "Prediction",
    "Protocol",
    "Provenance",
    "Provider",
    "ProviderError",
    "Quantization",
    "RegressionError",
    "ReportComparison",
    "Rewriting",
    "Row",
    "Scores",
    "ServeOptions",
    "Served",
    "Server",
    "SizeError",
    "Tally",
    "Target",
    "Tier",
    "TritonBackend",
    "UsageError",
    "Variant",
    "Verification",
    "VerifyOptions",
    "WeightsOptions",
    "__version__",
    "axis_sizes",
    "bench",
    "build_engine",
    "check_fits",
    "compare_reports",
    "default_opset",
    "draw_regions",
    "evaluate",
    "examine",
    "export",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "find_dataset",
    "find_images",
    "inspect",
    "open_bundle",
    "open_engine",
    "optimize",
    "package",
    "predict",
    "read_checkpoint",
    "read_report",
    "require_page",
    "sample_dataset",
    "serve",
    "verify",
    "write_markdown",
    "write_page",
    "write_report",
]

if TYPE_CHECKING:
    from benchmarks.comparison import ReportComparison, compare_reports
    from benchmarks.options import BenchOptions
    from benchmarks.report import require_page, write_markdown, write_page
    from benchmarks.results import BenchReport, Row, read_report, write_report
    from benchmarks.run import bench
    from benchmarks.timing import Measurement, Protocol
    from exporters.calibration_method import Calibration
    from exporters.eight_bit import Quantization
    from exporters.export_options import ExportOptions
    from exporters.foreign import Optimized, optimize
    from exporters.onnx import OnnxOptions
    from exporters.optimize import Optimize, Target
    from exporters.pipeline import ExportResult, export
    from exporters.precision import HalfReport
    from exporters.reduce import PrecisionOptions, default_opset
    from exporters.rewrite import Rewriting
    from exporters.tensorrt import EngineBuild, build_engine
    from exporters.triton.options import PackageOptions, PackageTarget, TritonBackend
    from exporters.triton.repository import Package, package
    from exporters.trt.options import EngineOptions
    from exporters.window_picture import draw_regions
    from fcn_deploy.bundle import Bundle, open_bundle
    from fcn_deploy.doctor import Finding, examine
    from fcn_deploy.errors import (
        BundleError,
        CheckpointError,
        FcnDeployError,
        ImageError,
        InputFileError,
        MeasurementError,
        OutputError,
        ParityError,
        ProviderError,
        RegressionError,
        SizeError,
        UsageError,
    )
    from fcn_deploy.evaluation.dataset import Dataset, Pair, find_dataset, sample_dataset
    from fcn_deploy.evaluation.options import Against, EvaluateOptions
    from fcn_deploy.evaluation.result import Evaluation
    from fcn_deploy.evaluation.run import evaluate
    from fcn_deploy.geometry import AxisSizes, Geometry, Variant, axis_sizes, check_fits
    from fcn_deploy.inspection import Inspection, inspect
    from fcn_deploy.metrics import Scores
    from fcn_deploy.model_info import Head, ImageInput, ModelInfo, NetworkSpec, Precision, Provenance
    from fcn_deploy.models.checkpoints import read_checkpoint
    from fcn_deploy.models.fcn import fcn8s, fcn16s, fcn32s
    from fcn_deploy.models.weights import WeightsOptions
    from fcn_deploy.parity.compare import Comparison
    from fcn_deploy.parity.report import ParityReport
    from fcn_deploy.parity.tolerance import Tier
    from fcn_deploy.photos import find_images
    from fcn_deploy.prediction.options import EngineName, OutputFormat, PredictOptions
    from fcn_deploy.prediction.run import predict
    from fcn_deploy.prediction.tally import Tally
    from fcn_deploy.prediction.work import Prediction
    from fcn_deploy.runtime.engine_file import Engine, open_engine
    from fcn_deploy.runtime.ort_options import OrtOptions
    from fcn_deploy.runtime.provider import Provider
    from fcn_deploy.runtime.tensorrt_flavour import FlavourName
    from fcn_deploy.samples import SAMPLE_CHECKPOINT, SAMPLE_LABELS, SAMPLE_SCENE
    from fcn_deploy.serving.options import ServeOptions
    from fcn_deploy.serving.server import Served, Server, serve
    from fcn_deploy.verification import Verification, VerifyOptions, verify
    from fcn_deploy.version import __version__


def __getattr__(name: str) -> Any:
    if name not in MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
