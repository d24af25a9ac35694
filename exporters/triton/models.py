"""The models of a repository: their files, and the facts that their configurations are written from.

`check_servable` refuses what Triton cannot serve as verified; `write_models` then writes one model for ONNX Runtime or
the Python backend, and for an engine as many as it takes from pixels to labels.
"""

import shutil
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import onnx_ir as ir

from exporters.tensorrt.build import require_signed
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
from fcn_deploy.progress import OnStep
from fcn_deploy.runtime.ort_options import OrtOptions

ANY = -1  # a size that every request chooses for itself
VERSION = "1"
PLAN_FILE = "model.plan"
_QUEUE_DELAY_US = 1000
_MEBIBYTE = 2**20
_PRECISION_MODES = {Precision.FP32: "FP32", Precision.FP16: "FP16", Precision.INT8: "INT8"}
_MODEL_PY = Path(__file__).parent / "python_backend" / "model.py"


@dataclass(frozen=True)
class TritonTensor:
    """An input or output as Triton's clients see it."""

    spec: TensorSpec  # name, sizes without the batch that Triton forms (`ANY` where they are free), and NumPy dtype
    model_shape: tuple[int, ...] | None = None  # the model's own shape where that is not `spec.shape`
    ragged: bool = False  # whether requests of different sizes may run together

    @classmethod
    def of(cls, spec: TensorSpec) -> "TritonTensor":
        """Describe a model's tensor of fixed sizes: a batch of one is left out of what clients see."""
        if len(spec.shape) > 1 and spec.shape[0] == 1:
            return cls(TensorSpec(spec.name, spec.shape[1:], spec.dtype), spec.shape)
        return cls(spec)


@dataclass(frozen=True)
class Batching:
    """How Triton puts requests together."""

    size: int  # the most images per run
    queue_delay_us: int  # how long a request may wait for others, microseconds


@dataclass(frozen=True)
class InstancePlacement:
    """Where copies of a model run."""

    instances: int = 1  # number of copies
    gpu: bool = False  # whether on GPUs
    first_gpu_only: bool = False  # the runtime uses the first GPU only; Triton would use all
    # ONNX Runtime's providers, most wanted first, and their options by Triton's names
    accelerators: tuple[tuple[str, Mapping[str, str]], ...] = ()


@dataclass(frozen=True)
class TritonModel:
    """A model of a repository."""

    name: str  # for clients and ensembles
    backend: TritonBackend  # what runs it
    inputs: tuple[TritonTensor, ...]  # as clients see them
    outputs: tuple[TritonTensor, ...]  # likewise
    # shapes of the images that it is warmed up with, one a run, batch included
    warm_up: tuple[tuple[int, ...], ...] = ()
    placement: InstancePlacement = InstancePlacement()  # where it runs
    batching: Batching | None = None  # how Triton puts requests together; None where it does not
    parameters: Mapping[str, str] = field(default_factory=dict)  # facts that travel with the configuration


@dataclass(frozen=True)
class Ensemble:
    """Models that run one after the other, the output of each being the input of the next."""

    name: str  # for clients
    steps: tuple[TritonModel, ...]  # the models, in order
    parameters: Mapping[str, str] = field(default_factory=dict)  # facts that travel with the configuration

    @property
    def inputs(self) -> tuple[TritonTensor, ...]:
        """Inputs of the first step."""
        return self.steps[0].inputs

    @property
    def outputs(self) -> tuple[TritonTensor, ...]:
        """Outputs of the last step."""
        return self.steps[-1].outputs


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
    def batching(self) -> Batching | None:
        """How requests are put together, up to the artifact's batch; None where that is 1."""
        batch, delay = self.artifact.input_shape[0], self.options.queue_delay_us
        return Batching(batch, _QUEUE_DELAY_US if delay is None else delay) if batch > 1 else None

    def version(self, name: str) -> Path:
        """Make the folder of a model's only version."""
        folder = self.repository / name / VERSION
        folder.mkdir(parents=True)
        return folder

    def facts(self) -> dict[str, str]:
        """Return the model's metadata and the hash of its file."""
        return {**self.artifact.info.to_metadata(), f"{METADATA_PREFIX}model_sha256": self.artifact.model_sha256}


def write_models(job: PackageJob) -> tuple[TritonModel | Ensemble, ...]:
    """Write the files of every model; returns the models, the one that clients ask for last.

    Raises:
        UsageError: the graph cannot be given the inputs, outputs or batch that Triton needs.
        ParityError: it labels pictures otherwise once it has been.
    """
    if job.options.backend is TritonBackend.PYTHON:
        return (_write_python_model(job),)
    if isinstance(job.artifact, Engine):
        return _write_engine_models(job, job.artifact)
    return (_write_onnx_model(job, job.artifact),)


def _write_onnx_model(job: PackageJob, bundle: Bundle) -> TritonModel:
    batch, _, height, width = shape = bundle.input_shape
    _write_graph(job, bundle)
    pixels, labels = (height, width, 3), (height, width)
    # Triton adds the dimension of a batch that it forms itself; a fixed batch of 1 is declared explicitly.
    pixels_shape, labels_shape = (None, None) if batch > 1 else ((1, *pixels), (1, *labels))
    return TritonModel(
        job.name,
        TritonBackend.ONNXRUNTIME,
        inputs=(TritonTensor(TensorSpec(PIXELS_NAME, pixels, "uint8"), pixels_shape),),
        outputs=(TritonTensor(TensorSpec(LABELS_NAME, labels, "uint8"), labels_shape),),
        warm_up=((1, *pixels), (batch, *pixels)) if batch > 1 else (pixels,),
        placement=_onnx_placement(job.options, bundle.info.precision, shape),
        batching=job.batching,
        parameters=job.facts(),
    )


def _write_graph(job: PackageJob, bundle: Bundle) -> None:
    """Write the graph from pixels to labels: the artifact's own if it is one with a batch of 1, or a changed copy."""
    version = job.version(job.name)
    graph = bundle.model.graph
    complete = (graph.inputs[0].name, graph.outputs[0].name) == (PIXELS_NAME, LABELS_NAME)
    served = bundle.model if complete else pixels_to_labels(bundle.model)
    if bundle.input_shape[0] > 1:
        served = with_free_batch(served)
    if served is bundle.model:
        with job.on_step(f"copy {bundle.model_path}"):
            shutil.copyfile(bundle.model_path, version / MODEL_FILE)
    else:
        with job.on_step("compare the labels of the graph for Triton with the artifact's"):
            require_same_labels(bundle.model_path, served, bundle.input_shape)
        with job.on_step(f"write {MODEL_FILE}"):
            write_model(served, version / MODEL_FILE)
    if bundle.manifest is not None:
        shutil.copyfile(bundle.path / MANIFEST_FILE, version / MANIFEST_FILE)


def _onnx_placement(
    options: PackageOptions, precision: Precision, shape: tuple[int, int, int, int]
) -> InstancePlacement:
    """Place an ONNX model on the CPU, or on every GPU with the options that this toolkit compares models under."""
    provider = options.provider or Provider.CPU
    if provider is Provider.CPU:
        return InstancePlacement(options.instances)
    # Triton's own default rounds products to TF32; and nodes that TensorRT does not run use these options too.
    accelerators: tuple[tuple[str, Mapping[str, str]], ...] = (("cuda", OrtOptions(Provider.CUDA).provider_options()),)
    if provider is Provider.TENSORRT:
        accelerators = (("tensorrt", _tensorrt_options(options, precision, shape)), *accelerators)
    return InstancePlacement(options.instances, gpu=True, accelerators=accelerators)


def _tensorrt_options(
    options: PackageOptions, precision: Precision, shape: tuple[int, int, int, int]
) -> Mapping[str, str]:
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


def _write_engine_models(job: PackageJob, engine: Engine) -> tuple[TritonModel | Ensemble, ...]:
    """Write the engine, and an ensemble around one that does not go from pixels to labels itself."""
    (source,), (target,) = engine.inputs, engine.outputs
    before, after = source.name != PIXELS_NAME, target.name != LABELS_NAME
    facts = job.facts()
    with job.on_step(f"copy {engine.path}"):
        if not before and not after:
            return (replace(_write_engine(job, engine, job.name), parameters=facts),)
        steps = [_write_engine(job, engine, f"{job.name}_engine")]
    batch, _, height, width = engine.input_shape
    if before:
        pixels = TensorSpec(PIXELS_NAME, (batch, height, width, 3), "uint8")
        steps.insert(0, _write_step(job, "pixels", pixels, source, preprocessing(batch, height, width)))
    if after:
        labels = TensorSpec(LABELS_NAME, (batch, height, width), "uint8")
        graph = postprocessing(batch, target.shape[1], height, width)
        steps.append(_write_step(job, "labels", target, labels, graph))
    # Triton wants a version folder of an ensemble too, and object stores lose folders that are empty.
    shutil.copyfile(sidecar_path(engine.path), sidecar_path(job.version(job.name) / PLAN_FILE))
    return (*steps, Ensemble(job.name, tuple(steps), facts))


def _write_engine(job: PackageJob, engine: Engine, name: str) -> TritonModel:
    engine.copy_to(job.version(name), Path(PLAN_FILE).stem)
    return _on_gpu(job, name, TritonBackend.TENSORRT, engine.inputs[0], engine.outputs[0])


def _write_step(job: PackageJob, what: str, source: TensorSpec, target: TensorSpec, graph: ir.Model) -> TritonModel:
    name = f"{job.name}_{what}"
    write_model(graph, job.version(name) / MODEL_FILE)
    return _on_gpu(job, name, TritonBackend.ONNXRUNTIME, source, target)


def _on_gpu(job: PackageJob, name: str, backend: TritonBackend, source: TensorSpec, target: TensorSpec) -> TritonModel:
    pixels = TritonTensor.of(source)
    placement = InstancePlacement(job.options.instances, gpu=True)
    return TritonModel(name, backend, (pixels,), (TritonTensor.of(target),), (pixels.spec.shape,), placement)


def _write_python_model(job: PackageJob) -> TritonModel:
    """Write the artifact and model.py: from photos of any size to labels of the same size."""
    version, batching = job.version(job.name), job.batching
    with job.on_step(f"copy {job.options.source}"):
        shutil.copyfile(_MODEL_PY, version / "model.py")
        copied = job.artifact.copy_to(version, "artifact")
    _, _, height, width = job.artifact.input_shape
    provider = job.options.provider or Provider.CPU
    gpu = not job.artifact.has_graph or provider is not Provider.CPU
    pixels, labels = TensorSpec(PIXELS_NAME, (ANY, ANY, 3), "uint8"), TensorSpec(LABELS_NAME, (ANY, ANY), "uint8")
    return TritonModel(
        job.name,
        TritonBackend.PYTHON,
        inputs=(TritonTensor(pixels, ragged=batching is not None),),
        outputs=(TritonTensor(labels),),
        warm_up=((height, width, 3) if batching is None else (batching.size, height, width, 3),),
        # The runtime uses the first GPU that it sees; Triton would put copies on all.
        placement=InstancePlacement(job.options.instances, gpu=gpu, first_gpu_only=gpu),
        batching=batching,
        parameters={"artifact": copied, "provider": str(provider), **job.facts()},
    )


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
            f"{options.source} is bf16, a precision that Triton cannot select for TensorRT",
            remedy="Pass --provider cuda, or build an engine with `fcn-deploy tensorrt` and pass --backend tensorrt.",
        )
    if provider is Provider.TENSORRT:
        require_signed(bundle, str(options.source))
