"""The models of a repository: their files and their configurations.

`check_servable` refuses what Triton cannot serve as verified; `write_models` then writes one model for ONNX Runtime or
the Python backend, and for an engine as many as it takes from pixels to labels.
"""

import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import onnx_ir as ir

from exporters.tensorrt.build import require_signed
from exporters.triton.config import add_tensors, add_warm_up, ensemble_config, model_config
from exporters.triton.graphs import (
    pixels_to_labels,
    postprocessing,
    preprocessing,
    require_same_labels,
    with_free_batch,
)
from exporters.triton.options import PackageOptions
from fcn_deploy.artifact.bundle import MANIFEST_FILE, MODEL_FILE, Bundle
from fcn_deploy.artifact.engine import Engine, sidecar_path
from fcn_deploy.choices import FlavourName, Precision, Provider, TritonBackend
from fcn_deploy.errors import UsageError
from fcn_deploy.model_info import LABELS_NAME, METADATA_PREFIX, PIXELS_NAME, TensorSpec
from fcn_deploy.onnx_file import write_model
from fcn_deploy.parity.inputs import Shape
from fcn_deploy.progress import OnStep
from fcn_deploy.runtime.ort_options import OrtOptions

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

ANY = -1  # a variable size
VERSION = "1"
PLAN_FILE = "model.plan"
_QUEUE_DELAY_US = 1000
_MEBIBYTE = 2**20
_PRECISION_MODES = {Precision.FP32: "FP32", Precision.FP16: "FP16", Precision.INT8: "INT8"}
_MODEL_PY = Path(__file__).parent / "python_backend" / "model.py"


@dataclass(frozen=True)
class PackageJob:
    """An artifact that is being packaged."""

    options: PackageOptions  # what was asked for
    artifact: Bundle | Engine  # the source, opened and checked
    repository: Path  # the directory for Triton
    on_step: OnStep  # called with what is being done

    @property
    def name(self) -> str:
        """The model's name for clients."""
        return self.options.model_name

    @property
    def batch(self) -> int:
        """The artifact's batch: up to so many photos are put together, none where it is 1."""
        return self.artifact.input_shape[0]

    def version(self, name: str) -> Path:
        """Create the folder of a model's only version."""
        folder = self.repository / name / VERSION
        folder.mkdir(parents=True)
        return folder

    def with_facts(self, config: "ModelConfig", **parameters: str) -> "ModelConfig":
        """Add parameters, the model's metadata and the hash of its file to a configuration; returns it."""
        facts = {**self.artifact.info.to_metadata(), f"{METADATA_PREFIX}model_sha256": self.artifact.model_sha256}
        for name, value in {**parameters, **facts}.items():
            config.parameters[name].string_value = value
        return config


def write_models(job: PackageJob) -> tuple["ModelConfig", ...]:
    """Write the files of every model; returns their configurations, that of the model clients ask for last.

    Raises:
        UsageError: the graph cannot get the inputs, outputs or batch that Triton needs.
        ParityError: the changed graph labels pictures differently.
    """
    if job.options.backend is TritonBackend.PYTHON:
        return (_write_python_model(job),)
    if isinstance(job.artifact, Engine):
        return _write_engine_models(job, job.artifact)
    return (_write_onnx_model(job, job.artifact),)


def _write_onnx_model(job: PackageJob, bundle: Bundle) -> "ModelConfig":
    _write_graph(job, bundle)
    provider = job.options.provider or Provider.CPU
    sizes = bundle.input_shape[2:] if job.batch > 1 else (1, *bundle.input_shape[2:])
    config = _config_of_photos(job, sizes, gpu=provider is not Provider.CPU)
    for batch in (1, job.batch) if job.batch > 1 else (0,):
        add_warm_up(config, batch, (*bundle.input_shape[2:], 3))
    # On every GPU with the options that this toolkit compares models under: Triton's own default rounds products to
    # TF32. Nodes that TensorRT does not run use these options too.
    accelerators = config.optimization.execution_accelerators.gpu_execution_accelerator
    if provider is Provider.TENSORRT:
        options = _tensorrt_options(job.options, bundle.info.precision, bundle.input_shape)
        accelerators.add(name="tensorrt", parameters=options)
    if provider is not Provider.CPU:
        accelerators.add(name="cuda", parameters=OrtOptions(Provider.CUDA).provider_options())
    return job.with_facts(config)


def _config_of_photos(job: PackageJob, sizes: tuple[int, ...], *, gpu: bool) -> "ModelConfig":
    """Configure a model from uint8 pixels to labels of `sizes`, up to the artifact's batch."""
    config = model_config(job.name, job.options.backend, job.options.instances, gpu=gpu)
    if job.batch > 1:
        delay = job.options.queue_delay_us
        config.max_batch_size = job.batch
        config.dynamic_batching.preferred_batch_size.append(job.batch)
        config.dynamic_batching.max_queue_delay_microseconds = _QUEUE_DELAY_US if delay is None else delay
    add_tensors(config, TensorSpec(PIXELS_NAME, (*sizes, 3), "uint8"), TensorSpec(LABELS_NAME, sizes, "uint8"))
    return config


def _write_graph(job: PackageJob, bundle: Bundle) -> None:
    """Write the graph from pixels to labels: the artifact's own if it is one with a batch of 1, or a changed copy."""
    version = job.version(job.name)
    graph = bundle.model.graph
    complete = (graph.inputs[0].name, graph.outputs[0].name) == (PIXELS_NAME, LABELS_NAME)
    served = bundle.model if complete else pixels_to_labels(bundle.model, bundle.info)
    if job.batch > 1:
        served = with_free_batch(served)
    if served is bundle.model:
        with job.on_step(f"copy {bundle.model_path}"):
            shutil.copyfile(bundle.model_path, version / MODEL_FILE)
    else:
        with job.on_step("compare the labels of the graph for Triton with the artifact's"):
            require_same_labels(bundle.model_path, served, bundle.input_shape, bundle.info)
        with job.on_step(f"write {MODEL_FILE}"):
            write_model(served, version / MODEL_FILE)
    if bundle.manifest is not None:
        shutil.copyfile(bundle.path / MANIFEST_FILE, version / MANIFEST_FILE)


def _tensorrt_options(options: PackageOptions, precision: Precision, shape: Shape) -> dict[str, str]:
    chosen = {"precision_mode": _PRECISION_MODES[precision]}
    if options.workspace_mb is not None:
        chosen["max_workspace_size_bytes"] = str(options.workspace_mb * _MEBIBYTE)
    if options.engine_cache is not None:
        chosen |= {"trt_engine_cache_enable": "1", "trt_engine_cache_path": options.engine_cache}
    batch, _, height, width = shape
    if batch > 1:
        # One engine for every batch, built when the model is loaded instead of when a batch is first seen.
        for name, size in {"min": 1, "opt": batch, "max": batch}.items():
            chosen[f"trt_profile_{name}_shapes"] = f"{PIXELS_NAME}:{size}x{height}x{width}x3"
    return chosen


def _write_engine_models(job: PackageJob, engine: Engine) -> tuple["ModelConfig", ...]:
    """Write the engine, and an ensemble around one that does not go from pixels to labels itself."""
    (source,), (target,) = engine.inputs, engine.outputs
    before, after = source.name != PIXELS_NAME, target.name != LABELS_NAME
    name = f"{job.name}_engine" if before or after else job.name
    with job.on_step(f"copy {engine.path}"):
        engine.copy_to(job.version(name), Path(PLAN_FILE).stem)
    steps = [_config_of_step(job, name, TritonBackend.TENSORRT, source, target)]
    if not before and not after:
        return (job.with_facts(steps[0]),)
    batch, _, height, width = engine.input_shape
    if before:
        pixels = TensorSpec(PIXELS_NAME, (batch, height, width, 3), "uint8")
        steps.insert(0, _write_step(job, "pixels", pixels, source, preprocessing(engine.info, batch, height, width)))
    if after:
        labels = TensorSpec(LABELS_NAME, (batch, height, width), "uint8")
        graph = postprocessing(engine.info, batch, height, width)
        steps.append(_write_step(job, "labels", target, labels, graph))
    # Triton needs a version folder for an ensemble too, and object stores drop empty folders.
    shutil.copyfile(sidecar_path(engine.path), sidecar_path(job.version(job.name) / PLAN_FILE))
    return (*steps, job.with_facts(ensemble_config(job.name, steps)))


def _write_step(job: PackageJob, what: str, source: TensorSpec, target: TensorSpec, graph: ir.Model) -> "ModelConfig":
    name = f"{job.name}_{what}"
    write_model(graph, job.version(name) / MODEL_FILE)
    return _config_of_step(job, name, TritonBackend.ONNXRUNTIME, source, target)


def _config_of_step(
    job: PackageJob, name: str, backend: TritonBackend, source: TensorSpec, target: TensorSpec
) -> "ModelConfig":
    config = model_config(name, backend, job.options.instances, gpu=True)
    add_tensors(config, source, target)
    add_warm_up(config, 0, config.input[0].dims)
    return config


def _write_python_model(job: PackageJob) -> "ModelConfig":
    """Write the artifact and model.py: from photos of any size to labels of the same size."""
    version = job.version(job.name)
    with job.on_step(f"copy {job.options.source}"):
        shutil.copyfile(_MODEL_PY, version / "model.py")
        copied = job.artifact.copy_to(version, "artifact")
    provider = job.options.provider or Provider.CPU
    gpu = not job.artifact.has_graph or provider is not Provider.CPU
    config = _config_of_photos(job, (ANY, ANY), gpu=gpu)
    config.input[0].allow_ragged_batch = job.batch > 1
    if gpu:
        # The runtime uses the first GPU only; Triton would place instances on all.
        config.instance_group[0].gpus.append(0)
    add_warm_up(config, job.batch if job.batch > 1 else 0, (*job.artifact.input_shape[2:], 3))
    return job.with_facts(config, artifact=copied, provider=str(provider))


def check_servable(options: PackageOptions, artifact: Bundle | Engine) -> None:
    """Check that the requested backend can serve an artifact unchanged.

    Raises:
        UsageError: it cannot; names the backend that can.
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
    batches = artifact.input_shape[0] > 1 and options.backend is not TritonBackend.TENSORRT
    if options.queue_delay_us is not None and not batches:
        raise UsageError(
            f"{options.source} has no batch to put requests together in, so no request waits in a queue",
            remedy="Leave --queue-delay out, or export with --batch 2 or more.",
        )


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
    """Refuse what Triton's ONNX Runtime would compute differently from what was verified."""
    precision, provider = bundle.info.precision, options.provider or Provider.CPU
    if provider is Provider.CPU and precision is Precision.INT8:
        raise UsageError(
            f"{options.source} is int8: on CPUs without VNNI its 8-bit products would saturate, and Triton's "
            "ONNX Runtime backend has no option that prevents it",
            remedy="Pass --backend python, which prevents it.",
        )
    if provider is Provider.CPU and precision is not Precision.FP32:
        raise UsageError(
            f"{options.source} is {precision}, for which ONNX Runtime has no kernels on CPUs",
            remedy="Pass --provider cuda, or --backend python, which rounds on a CPU as a GPU does.",
        )
    if provider is Provider.TENSORRT and precision is Precision.BF16:
        raise UsageError(
            f"{options.source} is bf16, a precision that Triton cannot select for TensorRT",
            remedy="Pass --provider cuda, or build an engine with `fcn-deploy tensorrt` and pass --backend tensorrt.",
        )
    if provider is Provider.TENSORRT:
        require_signed(bundle, str(options.source))
