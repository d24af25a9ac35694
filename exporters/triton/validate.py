"""Whether what was written is what Triton will find: configurations read back and compared with the models."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from exporters.triton.config import data_type
from exporters.triton.work import VERSION
from fcn_deploy.bundle import MODEL_FILE
from fcn_deploy.errors import BundleError
from fcn_deploy.onnx_file import read_model
from fcn_deploy.runtime.engine_file import open_engine

CONFIG_FILE = "config.pbtxt"
_AGAIN = "Package it again; if that does not help, this is a fault of fcn-deploy."

# Type, and sizes with the batch; None is a free size.
_Tensor = tuple[int, tuple[int | None, ...]]
_Tensors = Mapping[str, _Tensor]


def validate_repository(repository: Path) -> None:
    """Read every configuration with Triton's message definitions and compare it with the model beside it.

    Raises:
        BundleError: a configuration cannot be read, or is not the model's.
    """
    configs = {folder.name: read_config(folder / CONFIG_FILE) for folder in sorted(repository.iterdir())}
    for name, config in configs.items():
        path = repository / name / CONFIG_FILE
        if config.name != name:
            raise BundleError(f"{path} is of {config.name!r}, in a folder called {name!r}", remedy=_AGAIN)
        if config.platform == "ensemble":
            _check_ensemble(path, config, configs)
            continue
        found = _model_tensors(repository / name / VERSION, config.backend)
        if found is not None:
            _check_tensors(path, "input", config, config.input, found[0])
            _check_tensors(path, "output", config, config.output, found[1])


def read_config(path: Path) -> Any:
    """A config.pbtxt as Triton's `ModelConfig` message.

    Raises:
        BundleError: it is missing, or has a field that Triton does not know.
    """
    from google.protobuf import text_format
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    try:
        return text_format.Parse(path.read_text(encoding="utf-8"), ModelConfig())
    except (OSError, text_format.ParseError) as error:
        raise BundleError(f"{path} is no configuration for Triton: {error}", remedy=_AGAIN) from error


def _model_tensors(version: Path, backend: str) -> tuple[_Tensors, _Tensors] | None:
    """Inputs and outputs as the model's own file states them; None for a program, which states nothing."""
    if backend == "python":
        return None
    if backend == "tensorrt":
        engine = open_engine(version / "model.plan")
        ends = (engine.inputs, engine.outputs)
        inputs, outputs = ({t.name: (data_type(t.dtype), tuple(t.shape)) for t in tensors} for tensors in ends)
        return inputs, outputs
    graph = read_model(version / MODEL_FILE).graph
    return _onnx_tensors(graph.inputs), _onnx_tensors(graph.outputs)


def _onnx_tensors(values: Iterable[Any]) -> _Tensors:
    found = {}
    for value in values:
        sizes = tuple(size if isinstance(size, int) else None for size in value.shape)
        found[str(value.name)] = data_type(value.dtype.numpy().name), sizes
    return found


def _check_tensors(path: Path, what: str, config: Any, tensors: Iterable[Any], found: _Tensors) -> None:
    stated = {}
    for tensor in tensors:
        sizes = tuple(tensor.reshape.shape) if tensor.HasField("reshape") else tuple(tensor.dims)
        batch: tuple[int | None, ...] = (None,) if config.max_batch_size else ()
        stated[tensor.name] = tensor.data_type, batch + sizes
    if stated != dict(found):
        raise BundleError(f"{path} has {what} {stated}; the model beside it has {dict(found)}", remedy=_AGAIN)


def _check_ensemble(path: Path, config: Any, configs: Mapping[str, Any]) -> None:
    """Every step takes what the client or an earlier step gives; what the client gets is what a step gives."""
    known = {tensor.name: (tensor.data_type, tuple(tensor.dims)) for tensor in config.input}
    for step in config.ensemble_scheduling.step:
        model = configs.get(step.model_name)
        if model is None:
            raise BundleError(f"{path} has a step {step.model_name}, which is not there", remedy=_AGAIN)
        for tensor in model.input:
            given = known.get(step.input_map[tensor.name])
            if given != (tensor.data_type, tuple(tensor.dims)):
                raise BundleError(f"{path}: {step.model_name} cannot take {tensor.name} from {given}", remedy=_AGAIN)
        known |= {step.output_map[t.name]: (t.data_type, tuple(t.dims)) for t in model.output}
    for tensor in config.output:
        if known.get(tensor.name) != (tensor.data_type, tuple(tensor.dims)):
            raise BundleError(f"{path}: no step gives {tensor.name} as it is stated", remedy=_AGAIN)
