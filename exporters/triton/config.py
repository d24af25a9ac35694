"""config.pbtxt, built as Triton's own messages and printed by protobuf, and the manifest for Kubernetes.

The fields are documented in Triton's user guide, "Model Configuration", and for ONNX Runtime's accelerators in
the README of triton-inference-server/onnxruntime_backend.
"""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from fcn_deploy.choices import TritonBackend
from fcn_deploy.model_info import TensorSpec

if TYPE_CHECKING:
    from tritonclient.grpc.model_config_pb2 import ModelConfig

_PLATFORMS = {TritonBackend.ONNXRUNTIME: "onnxruntime_onnx", TritonBackend.TENSORRT: "tensorrt_plan"}


def config_text(config: "ModelConfig") -> str:
    """Return the text of a model's config.pbtxt."""
    from google.protobuf import text_format

    return str(text_format.MessageToString(config))


def model_config(name: str, backend: TritonBackend, instances: int, *, gpu: bool) -> "ModelConfig":
    """Return the configuration of a model in `instances` copies, without tensors yet."""
    config = _config(name, backend=backend, platform=_PLATFORMS.get(backend, ""))
    config.instance_group.add(count=instances, kind="KIND_GPU" if gpu else "KIND_CPU")
    return config


def ensemble_config(name: str, steps: Sequence["ModelConfig"]) -> "ModelConfig":
    """Return the configuration of models that run in order, the output of each being the input of the next."""
    config = _config(name, platform="ensemble")
    config.input.extend(steps[0].input)
    config.output.extend(steps[-1].output)
    # An ensemble's own tensors are those of its steps, which reshape them.
    for tensor in (*config.input, *config.output):
        tensor.ClearField("reshape")
    for step in steps:
        inputs, outputs = ({tensor.name: tensor.name for tensor in tensors} for tensors in (step.input, step.output))
        config.ensemble_scheduling.step.add(
            model_name=step.name, model_version=-1, input_map=inputs, output_map=outputs
        )
    return config


def _config(name: str, **fields: str) -> "ModelConfig":
    from tritonclient.grpc.model_config_pb2 import ModelConfig

    config = ModelConfig(name=name, **fields)
    config.version_policy.latest.num_versions = 1
    config.response_cache.enable = False
    return config


def add_tensors(config: "ModelConfig", source: TensorSpec, target: TensorSpec) -> None:
    """Declare the input and the output: without the batch where Triton forms one, else in the model's own shape.

    Clients see a batch fixed at 1 as no batch.
    """
    for tensors, spec in ((config.input, source), (config.output, target)):
        single = not config.max_batch_size and spec.shape[0] == 1
        dims = spec.shape[1:] if single else spec.shape
        added = tensors.add(name=spec.name, data_type=data_type(spec.dtype), dims=dims)
        if single:
            added.reshape.shape.extend(spec.shape)


def data_type(dtype: str) -> int:
    """Return Triton's enumeration value for a NumPy dtype."""
    from tritonclient.grpc import model_config_pb2 as messages
    from tritonclient.utils import np_to_triton_dtype

    return int(messages.DataType.Value(f"TYPE_{np_to_triton_dtype(np.dtype(dtype).type)}"))


def add_warm_up(config: "ModelConfig", batch: int, sizes: Sequence[int]) -> None:
    """Add a run on random pixels of exactly that shape, before the model counts as ready; batch 0 is none."""
    shape = (batch, *sizes) if batch else sizes
    added = config.model_warmup.add(name=f"random {'x'.join(map(str, shape))}", count=1, batch_size=batch)
    image = added.inputs[config.input[0].name]
    image.data_type, image.random_data = config.input[0].data_type, True
    image.dims.extend(sizes)


_INVALID = re.compile(r"[^a-z0-9-]+")


def write_inference_service(path: Path, name: str, storage_uri: str, *, gpu: bool) -> None:
    """Write KServe's manifest as YAML.

    KServe's names are a lower-case letter, then such letters, digits and hyphens; `name` is converted to one.
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
