"""A package for Triton: a model repository, and beside it a client and a manifest for Kubernetes."""

import json
import shlex
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from exporters.triton.config import config_text, data_type, write_inference_service
from exporters.triton.models import PLAN_FILE, VERSION, PackageJob, check_servable, write_models
from exporters.triton.options import PackageOptions
from fcn_deploy.artifact import open_artifact
from fcn_deploy.artifact.bundle import MODEL_FILE, convert_facts, read_facts
from fcn_deploy.artifact.engine import open_engine
from fcn_deploy.choices import TritonBackend
from fcn_deploy.errors import BundleError
from fcn_deploy.installation import __version__, require_extra
from fcn_deploy.model_info import ModelInfo, TensorSpec
from fcn_deploy.onnx_file import read_model
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.storage import staged_directory

CONFIG_FILE = "config.pbtxt"
_AGAIN = "Package it again; if that does not help, report it as a bug of fcn-deploy."
# Type, and sizes with the batch; None is a free size.
_Tensors = Mapping[str, tuple[int, tuple[int | None, ...]]]
REPOSITORY, RECORD, CLIENT, MANIFEST = "repository", "triton-package.json", "client.py", "inference-service.yaml"
SCHEMA_VERSION = 1
# A release with Python 3.12, which this toolkit supports.
IMAGE = "nvcr.io/nvidia/tritonserver:25.08-py3"
_CLIENT = Path(__file__).parent / CLIENT
_CLIENT_MODEL = 'MODEL = "fcn8s"'


@dataclass(frozen=True)
class Package:
    """A package that was written.

    Attributes:
        path: its directory.
        name: name of the model for clients.
        backend: what runs it.
        info: the model's facts.
        input: the tensor of a request, without Triton's batch; -1 is a variable size.
        output: the tensor of the response, without Triton's batch.
        max_batch: the largest batch of photos; 0 without batching.
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
        """Shell commands by purpose: `server` and `container` start Triton, `client` asks it."""
        repository = shlex.quote(str(self.path / REPOSITORY))
        mounted = shlex.quote(f"{(self.path / REPOSITORY).absolute()}:/models:ro")
        device = "--gpus all " if self.gpu else ""
        serve = "tritonserver --model-repository /models"
        install = f"pip install fcn-deploy=={__version__}"
        inside = f'sh -c "{install} && {serve}"' if self.backend is TritonBackend.PYTHON else serve
        return {
            "server": f"tritonserver --model-repository {repository}",
            "container": f"docker run --rm {device}-p 8000:8000 -p 8001:8001 -v {mounted} {IMAGE} {inside}",
            "client": f"python {shlex.quote(str(self.path / CLIENT))} photo.jpg",
        }

    def to_dict(self) -> dict[str, Any]:
        """Return every fact, for JSON."""
        facts = {**asdict(self), "path": str(self.path), "model": self.info.to_metadata(), "commands": self.commands}
        del facts["info"]
        return facts


def package(options: PackageOptions, on_step: OnStep = quietly) -> Package:
    """Write a model repository for Triton, a client and a manifest; validated, they appear in one move.

    Raises:
        UsageError: a package is not installed, or the backend cannot serve the artifact with these options.
        BundleError: the artifact is missing, damaged, or has no facts about its classes.
        OutputError: the output exists already, or cannot be written.
        ParityError: the graph for Triton labels pictures differently; nothing is written.
    """
    require_extra("a package for Triton", "triton", ("tritonclient", "yaml"))
    with on_step(f"check {options.source}"):
        artifact = open_artifact(options.source)
        check_servable(options, artifact)
    with staged_directory(options.output, own_files=_own_files, force=options.force) as staging:
        job = PackageJob(options, artifact, staging / REPOSITORY, on_step)
        configs = write_models(job)
        with on_step("read the configurations back and compare them with the models"):
            for config in configs:
                (job.repository / config.name / CONFIG_FILE).write_text(config_text(config), encoding="utf-8")
            validate_repository(job.repository)
        gpu = any(group.kind == group.KIND_GPU for config in configs for group in config.instance_group)
        text = _CLIENT.read_text(encoding="utf-8").replace(_CLIENT_MODEL, f'MODEL = "{options.model_name}"')
        (staging / CLIENT).write_text(text, encoding="utf-8")
        write_inference_service(staging / MANIFEST, options.model_name, options.storage_uri, gpu=gpu)
        result = _result(options, artifact.info, configs[-1], staging, gpu=gpu)
        _write_record(staging / RECORD, result, options)
    return result


@dataclass(frozen=True)
class _Record:
    """The fields of a package's record that are read back."""

    files: dict[str, int]


def _own_files(path: Path) -> set[str]:
    """Return the relative names of a package's files; raises BundleError for a directory that is no package."""
    record = path / RECORD
    if not record.is_file():
        raise BundleError(f"it has no {RECORD}", remedy=_AGAIN)
    facts = read_facts(record, SCHEMA_VERSION, _AGAIN)
    return {RECORD, *convert_facts(facts, _Record, record, _AGAIN).files}


def _result(options: PackageOptions, info: ModelInfo, config: Any, staging: Path, *, gpu: bool) -> Package:
    files = sorted(path for path in staging.rglob("*") if path.is_file())
    return Package(
        path=options.output,
        name=config.name,
        backend=options.backend,
        info=info,
        # Every model is served from uint8 pixels to uint8 labels.
        input=TensorSpec(config.input[0].name, tuple(config.input[0].dims), "uint8"),
        output=TensorSpec(config.output[0].name, tuple(config.output[0].dims), "uint8"),
        max_batch=config.max_batch_size,
        gpu=gpu,
        files={path.relative_to(staging).as_posix(): path.stat().st_size for path in files},
    )


def _write_record(path: Path, result: Package, options: PackageOptions) -> None:
    """Write the record of the package, which lists the files that --force may replace."""
    facts = {"schema_version": SCHEMA_VERSION, "source": str(options.source), **result.to_dict()}
    # These paths would be wrong after the directory is moved.
    del facts["path"], facts["commands"]
    path.write_text(json.dumps(facts, indent=2) + "\n", encoding="utf-8")


def validate_repository(repository: Path) -> None:
    """Read every configuration with Triton's message definitions and compare it with the model beside it.

    Raises:
        BundleError: a configuration cannot be read, or does not match its model.
    """
    configs = {folder.name: read_config(folder / CONFIG_FILE) for folder in sorted(repository.iterdir())}
    for name, config in configs.items():
        path = repository / name / CONFIG_FILE
        if config.name != name:
            raise BundleError(f"{path} names {config.name!r}, in a folder called {name!r}", remedy=_AGAIN)
        if config.platform == "ensemble":
            _check_ensemble(path, config, configs)
            continue
        for what, found in _model_tensors(repository / name / VERSION, config.backend).items():
            _check_tensors(path, what, config, found)


def read_config(path: Path) -> Any:
    """Read a config.pbtxt as Triton's `ModelConfig` message.

    Raises:
        BundleError: it is missing, or has a field that Triton does not know.
    """
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise BundleError(f"{path} is not a configuration for Triton: {error}", remedy=_AGAIN) from error


def _model_tensors(version: Path, backend: str) -> dict[str, _Tensors]:
    """Return `input` and `output` as the model's own file states them; neither for a program, which states none."""
    if backend == "python":
        return {}
    model: Any = open_engine(version / PLAN_FILE) if backend == "tensorrt" else read_model(version / MODEL_FILE).graph
    return {"input": _tensors(model.inputs), "output": _tensors(model.outputs)}


def _tensors(values: Iterable[Any]) -> _Tensors:
    found = {}
    for value in values:
        dtype = value.dtype if isinstance(value, TensorSpec) else value.dtype.numpy().name
        sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
        found[str(value.name)] = data_type(dtype), sizes
    return found


def _check_tensors(path: Path, what: str, config: Any, found: _Tensors) -> None:
    stated = {}
    for tensor in getattr(config, what):
        sizes = tuple(tensor.reshape.shape if tensor.HasField("reshape") else tensor.dims)
        stated[tensor.name] = tensor.data_type, (None, *sizes) if config.max_batch_size else sizes
    if stated != found:
        raise BundleError(f"{path} has {what} {stated}; the model beside it has {found}", remedy=_AGAIN)


def _check_ensemble(path: Path, config: Any, configs: Mapping[str, Any]) -> None:
    """Check that the client or an earlier step provides every input of a step, and a step every output."""
    known = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            raise BundleError(f"{path} has a step {step.model_name}, which does not exist", remedy=_AGAIN)
        for tensor in model.input:
            given = known.get(step.input_map[tensor.name])
            if given != (tensor.data_type, tuple(tensor.dims)):
                raise BundleError(f"{path}: {step.model_name} cannot take {tensor.name} from {given}", remedy=_AGAIN)
        known |= {step.output_map[t.name]: (t.data_type, tuple(t.dims)) for t in model.output}
    for tensor in config.output:
        if known.get(tensor.name) != (tensor.data_type, tuple(tensor.dims)):
            raise BundleError(f"{path}: no step outputs {tensor.name} as it is declared", remedy=_AGAIN)
