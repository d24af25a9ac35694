"""config.pbtxt, built as Triton's own messages and printed by protobuf, and the manifest for Kubernetes.

The fields are documented in Triton's user guide, "Model Configuration", and for ONNX Runtime's accelerators in
the README of triton-inference-server/onnxruntime_backend.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from exporters.triton.models import Ensemble, TritonModel, TritonTensor
from fcn_deploy.choices import TritonBackend

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig


_PLATFORMS = {TritonBackend.ONNXRUNTIME: "onnxruntime_onnx", TritonBackend.TENSORRT: "tensorrt_plan"}


def config_text(model: TritonModel | Ensemble) -> str:
    """Return the text of a model's config.pbtxt."""
    from google.protobuf import text_format

    config = _ensemble_config(model) if isinstance(model, Ensemble) else _model_config(model)
    config.version_policy.latest.num_versions = 1
    config.response_cache.enable = False
    for name, value in model.parameters.items():
        config.parameters[name].string_value = value
    return str(text_format.MessageToString(config))


def _with_tensors(config: "ModelConfig", model: TritonModel | Ensemble) -> "ModelConfig":
    for tensor in model.inputs:
        added = config.input.add(name=tensor.spec.name, data_type=data_type(tensor.spec.dtype), dims=tensor.spec.shape)
        added.allow_ragged_batch = tensor.ragged
        _reshape(added, tensor)
    for tensor in model.outputs:
        added = config.output.add(name=tensor.spec.name, data_type=data_type(tensor.spec.dtype), dims=tensor.spec.shape)
        _reshape(added, tensor)
    return config


def _reshape(added: Any, tensor: TritonTensor) -> None:
    if tensor.model_shape is not None:
        added.reshape.shape.extend(tensor.model_shape)


def data_type(dtype: str) -> int:
    """Return Triton's number of a NumPy dtype."""
    from tritonclient.grpc import model_config_pb2 as messages
    from tritonclient.utils import np_to_triton_dtype

    return int(messages.DataType.Value(f"TYPE_{np_to_triton_dtype(np.dtype(dtype).type)}"))


def _model_config(model: TritonModel) -> "ModelConfig":
    from tritonclient.grpc import model_config_pb2 as messages

    config = messages.ModelConfig(
        name=model.name, backend=model.backend, platform=_PLATFORMS.get(model.backend, ""), max_batch_size=0
    )
    _with_tensors(config, model)
    if model.batching is not None:
        config.max_batch_size = model.batching.size
        config.dynamic_batching.preferred_batch_size.append(model.batching.size)
        config.dynamic_batching.max_queue_delay_microseconds = model.batching.queue_delay_us
    _place(config, model)
    for shape in model.warm_up:
        _warm_up(config, model.inputs[0], shape, batched=model.batching is not None)
    return config


def _place(config: "ModelConfig", model: TritonModel) -> None:
    from tritonclient.grpc import model_config_pb2 as messages

    kinds, place = messages.ModelInstanceGroup.Kind, model.placement
    group = config.instance_group.add(count=place.instances)
    group.kind = kinds.Value("KIND_GPU" if place.gpu else "KIND_CPU")
    if place.first_gpu_only:
        group.gpus.append(0)
    for name, parameters in place.accelerators:
        added = config.optimization.execution_accelerators.gpu_execution_accelerator.add(name=name)
        _fill(added.parameters, parameters)


def _fill(field: Any, values: Mapping[str, str]) -> None:
    for name, value in values.items():
        field[name] = value


def _warm_up(config: "ModelConfig", tensor: TritonTensor, shape: tuple[int, ...], *, batched: bool) -> None:
    """Add a run on random pixels of exactly that shape, before the model counts as ready."""
    added = config.model_warmup.add(name=f"random {'x'.join(map(str, shape))}", count=1)
    added.batch_size = shape[0] if batched else 0
    image = added.inputs[tensor.spec.name]
    image.data_type = data_type(tensor.spec.dtype)
    image.dims.extend(shape[1:] if batched else shape)
    image.random_data = True


def _ensemble_config(model: Ensemble) -> "ModelConfig":
    from tritonclient.grpc import model_config_pb2 as messages

    config = _with_tensors(messages.ModelConfig(name=model.name, platform="ensemble"), model)
    # An ensemble's own tensors are those of its steps, which reshape them.
    for tensor in (*config.input, *config.output):
        tensor.ClearField("reshape")
    for step in model.steps:
        added = config.ensemble_scheduling.step.add(model_name=step.name, model_version=-1)
        _fill(added.input_map, {tensor.spec.name: tensor.spec.name for tensor in step.inputs})
        _fill(added.output_map, {tensor.spec.name: tensor.spec.name for tensor in step.outputs})
    return config


_INVALID = re.compile(r"[^a-z0-9-]+")


def write_inference_service(path: Path, name: str, storage_uri: str, *, gpu: bool) -> None:
    """Write KServe's manifest as YAML.

    KServe's names begin with a lower-case letter and go on with such letters, digits and hyphens; `name` is made one.
    """
    import yaml

    label = _INVALID.sub("-", name.lower()).strip("-")
    model: dict[str, Any] = {"modelFormat": {"name": "triton"}, "protocolVersion": "v2", "storageUri": storage_uri}
    if gpu:
        model["resources"] = {kind: {"nvidia.com/gpu": "1"} for kind in ("limits", "requests")}
    document = {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": label if label[:1].isalpha() else f"model-{label}"},
        "spec": {"predictor": {"model": model}},
    }
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
