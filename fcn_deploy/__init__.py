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

__all__ = [
    "SAMPLE_CHECKPOINT",
    "SAMPLE_SCENE",
    "AxisSizes",
    "BenchOptions",
    "BenchReport",
    "Bundle",
    "BundleError",
    "Calibration",
    "CheckpointError",
    "Comparison",
    "Engine",
    "EngineBuild",
    "EngineOptions",
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
    "ServeOptions",
    "Served",
    "Server",
    "SizeError",
    "Target",
    "Tier",
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
    "examine",
    "export",
    "fcn8s",
    "fcn16s",
    "fcn32s",
    "find_images",
    "inspect",
    "open_bundle",
    "open_engine",
    "optimize",
    "predict",
    "read_checkpoint",
    "read_report",
    "require_page",
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
    from fcn_deploy.geometry import AxisSizes, Geometry, Variant, axis_sizes, check_fits
    from fcn_deploy.inspection import Inspection, inspect
    from fcn_deploy.model_info import Head, ImageInput, ModelInfo, NetworkSpec, Precision, Provenance
    from fcn_deploy.models.checkpoints import read_checkpoint
    from fcn_deploy.models.fcn import fcn8s, fcn16s, fcn32s
    from fcn_deploy.models.weights import WeightsOptions
    from fcn_deploy.parity.compare import Comparison
    from fcn_deploy.parity.report import ParityReport
    from fcn_deploy.parity.tolerance import Tier
    from fcn_deploy.photos import find_images
    from fcn_deploy.prediction import Prediction, PredictOptions, predict
    from fcn_deploy.runtime.engine_file import Engine, open_engine
    from fcn_deploy.runtime.ort_options import OrtOptions
    from fcn_deploy.runtime.provider import Provider
    from fcn_deploy.runtime.tensorrt_flavour import FlavourName
    from fcn_deploy.samples import SAMPLE_CHECKPOINT, SAMPLE_SCENE
    from fcn_deploy.serving.options import ServeOptions
    from fcn_deploy.serving.server import Served, Server, serve
    from fcn_deploy.verification import Verification, VerifyOptions, verify
    from fcn_deploy.version import __version__

_ERRORS = "BundleError CheckpointError FcnDeployError ImageError InputFileError OutputError ParityError ProviderError"
_NAMES_BY_MODULE = {
    "benchmarks.comparison": "ReportComparison compare_reports",
    "benchmarks.report": "require_page write_markdown write_page",
    "benchmarks.results": "BenchReport Row read_report write_report",
    "benchmarks.run": "bench",
    "benchmarks.options": "BenchOptions",
    "benchmarks.timing": "Measurement Protocol",
    "exporters.calibration_method": "Calibration",
    "exporters.eight_bit": "Quantization",
    "exporters.export_options": "ExportOptions",
    "exporters.foreign": "Optimized optimize",
    "exporters.onnx": "OnnxOptions",
    "exporters.optimize": "Optimize Target",
    "exporters.pipeline": "ExportResult export",
    "exporters.precision": "HalfReport",
    "exporters.reduce": "PrecisionOptions default_opset",
    "exporters.rewrite": "Rewriting",
    "exporters.tensorrt": "EngineBuild build_engine",
    "exporters.trt.options": "EngineOptions",
    "exporters.window_picture": "draw_regions",
    "fcn_deploy.bundle": "Bundle open_bundle",
    "fcn_deploy.doctor": "Finding examine",
    "fcn_deploy.errors": f"{_ERRORS} MeasurementError RegressionError SizeError UsageError",
    "fcn_deploy.geometry": "AxisSizes Geometry Variant axis_sizes check_fits",
    "fcn_deploy.inspection": "Inspection inspect",
    "fcn_deploy.model_info": "Head ImageInput ModelInfo NetworkSpec Precision Provenance",
    "fcn_deploy.models.checkpoints": "read_checkpoint",
    "fcn_deploy.models.fcn": "fcn32s fcn16s fcn8s",
    "fcn_deploy.models.weights": "WeightsOptions",
    "fcn_deploy.parity.compare": "Comparison",
    "fcn_deploy.parity.report": "ParityReport",
    "fcn_deploy.parity.tolerance": "Tier",
    "fcn_deploy.photos": "find_images",
    "fcn_deploy.prediction": "Prediction PredictOptions predict",
    "fcn_deploy.runtime.engine_file": "Engine open_engine",
    "fcn_deploy.runtime.ort_options": "OrtOptions",
    "fcn_deploy.runtime.provider": "Provider",
    "fcn_deploy.runtime.tensorrt_flavour": "FlavourName",
    "fcn_deploy.samples": "SAMPLE_CHECKPOINT SAMPLE_SCENE",
    "fcn_deploy.serving.options": "ServeOptions",
    "fcn_deploy.serving.server": "Served Server serve",
    "fcn_deploy.verification": "Verification VerifyOptions verify",
    "fcn_deploy.version": "__version__",
}
_MODULE_OF = {name: module for module, names in _NAMES_BY_MODULE.items() for name in names.split()}


def __getattr__(name: str) -> Any:
    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_MODULE_OF[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(__all__)
