"""A package for Triton: a model repository, and beside it a client and a manifest for Kubernetes."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.triton import commands
from exporters.triton.checks import check_servable
from exporters.triton.config import config_text, require_triton
from exporters.triton.engine_model import write_engine_models
from exporters.triton.kserve import write_inference_service
from exporters.triton.onnx_model import write_onnx_model
from exporters.triton.options import PackageOptions, TritonBackend
from exporters.triton.python_model import write_python_model
from exporters.triton.served import Ensemble, ServedModel
from exporters.triton.validate import CONFIG_FILE, validate_repository
from exporters.triton.work import Work
from fcn_deploy.artifact import open_artifact
from fcn_deploy.bundle import Bundle
from fcn_deploy.model_info import ModelInfo
from fcn_deploy.runtime.base import TensorSpec
from fcn_deploy.staging import staged_directory
from fcn_deploy.steps import OnStep, quietly

REPOSITORY, RECORD, CLIENT, MANIFEST = "repository", "triton-package.json", "client.py", "inference-service.yaml"
SCHEMA_VERSION = 1
_CLIENT = Path(__file__).parent / CLIENT
_CLIENT_MODEL = 'MODEL = "fcn8s"'


@dataclass(frozen=True)
class Package:
    """A package that was written.

    Attributes:
        path: its directory.
        name: of the model that clients ask for.
        backend: what runs it.
        info: the model's facts.
        input: what a request holds, a batch that Triton forms left out; -1 is a size the request chooses.
        output: what the response holds, likewise.
        max_batch: the most photos Triton puts together; 0 where it puts none together.
        gpu: whether it needs a GPU.
        files: with their sizes in bytes, by path below `path`.
    """

    path: Path
    name: str
    backend: TritonBackend
    info: ModelInfo
    input: TensorSpec
    output: TensorSpec
    max_batch: int
    gpu: bool
    files: dict[str, int]

    @property
    def commands(self) -> dict[str, str]:
        """How to start Triton on it, in a container or not, and how to ask it, as shell commands."""
        return commands.commands(self.path, self.backend, gpu=self.gpu)

    def to_dict(self) -> dict[str, Any]:
        """Every fact, for JSON."""
        facts = {**asdict(self), "path": str(self.path), "model": self.info.to_metadata(), "commands": self.commands}
        del facts["info"]
        return facts


def package(options: PackageOptions, on_step: OnStep = quietly) -> Package:
    """Write a model repository for Triton, and what goes with it; it appears in one move, validated.

    Raises:
        UsageError: a package is not installed, or the backend cannot serve the artifact as it was asked for.
        BundleError: the artifact is missing, damaged, or has no facts about its classes.
        OutputError: the output exists already, or cannot be written.
        ParityError: the graph for Triton labels pictures otherwise than the artifact; nothing is written then.
    """
    require_triton()
    with on_step(f"check {options.source}"):
        artifact = open_artifact(options.source)
        check_servable(options, artifact)
    with staged_directory(options.output, marker=RECORD, force=options.force) as staging:
        work = Work(options, artifact, staging / REPOSITORY, on_step)
        served = _write_models(work)
        with on_step("read the configurations back and compare them with the models"):
            for model in served:
                text = config_text(model)
                (work.repository / model.name / CONFIG_FILE).write_text(text, encoding="utf-8")
            validate_repository(work.repository)
        gpu = _write_beside(staging, options, served)
        result = _result(options, artifact.info, served[-1], staging, gpu=gpu)
        _write_record(staging / RECORD, result, options)
    return result


def _write_models(work: Work) -> tuple[ServedModel | Ensemble, ...]:
    """Write the files of every model; what clients ask for comes last."""
    if work.options.backend is TritonBackend.PYTHON:
        return (write_python_model(work),)
    if isinstance(work.artifact, Bundle):
        return (write_onnx_model(work, work.artifact),)
    return write_engine_models(work, work.artifact)


def _write_beside(staging: Path, options: PackageOptions, served: tuple[ServedModel | Ensemble, ...]) -> bool:
    """Write the client and the manifest; returns whether a GPU is needed."""
    text = _CLIENT.read_text(encoding="utf-8")
    (staging / CLIENT).write_text(text.replace(_CLIENT_MODEL, f'MODEL = "{options.model_name}"'), encoding="utf-8")
    gpu = any(isinstance(model, ServedModel) and model.placement.gpu for model in served)
    write_inference_service(staging / MANIFEST, options.model_name, options.storage_uri, gpu=gpu)
    return gpu


def _result(
    options: PackageOptions, info: ModelInfo, served: ServedModel | Ensemble, staging: Path, *, gpu: bool
) -> Package:
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    batching = served.batching if isinstance(served, ServedModel) else None
    return Package(
        path=options.output,
        name=served.name,
        backend=options.backend,
        info=info,
        input=served.inputs[0].spec,
        output=served.outputs[0].spec,
        max_batch=batching.size if batching else 0,
        gpu=gpu,
        files={path.relative_to(staging).as_posix(): path.stat().st_size for path in files},
    )


def _write_record(path: Path, result: Package, options: PackageOptions) -> None:
    """What marks the directory as a package, so that --force replaces nothing else, and says what it was made from."""
    facts = {"schema_version": SCHEMA_VERSION, "source": str(options.source), **result.to_dict()}
    # Wherever the directory is moved to, these would be wrong.
    del facts["path"], facts["commands"]
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")
