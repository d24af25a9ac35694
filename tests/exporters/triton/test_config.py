"""Configurations, read back with Triton's own message definitions: exact shapes, types, batches and places."""

from pathlib import Path
from typing import Any

import pytest
from google.protobuf import json_format, text_format
from tritonclient.grpc.model_config_pb2 import ModelConfig

import fcn_deploy as fd
from tests.exporters.triton.conftest import SIZE, Bundles

FLOAT, UINT8 = fd.ImageInput.FLOAT, fd.ImageInput.UINT8
LOGITS, LABELS = fd.Head.LOGITS, fd.Head.LABELS
PYTHON, ONNXRUNTIME = fd.TritonBackend.PYTHON, fd.TritonBackend.ONNXRUNTIME
# Protobuf prints 64-bit numbers as strings in JSON.
ONE, S = "1", str(SIZE)


def written(source: Path, output: Path, **options: Any) -> dict[str, Any]:
    """The configuration of a package as Triton's definitions read it, less the facts of the model."""
    made = fd.package(fd.PackageOptions(source, output, name="fcn", **options))
    config = text_format.Parse((output / "repository" / "fcn" / "config.pbtxt").read_text(), ModelConfig())
    found: dict[str, Any] = json_format.MessageToDict(config, preserving_proto_field_name=True)
    facts = found.pop("parameters")
    assert facts["fcn_deploy.weights"] == {"string_value": "untrained"}
    found["parameters"] = {k: v["string_value"] for k, v in facts.items() if not k.startswith("fcn_deploy.")}
    assert made.name == "fcn"
    return found


def warm_up(batch: int | None, *sizes: str) -> dict[str, Any]:
    image = {"data_type": "TYPE_UINT8", "dims": [*sizes, "3"], "random_data": True}
    shape = "x".join([*([str(batch)] if batch else []), *sizes, "3"])
    return {"name": f"random {shape}", "inputs": {"pixels": image}, "count": 1} | (
        {"batch_size": batch} if batch else {}
    )


COMMON = {
    "name": "fcn",
    "version_policy": {"latest": {"num_versions": 1}},
    "instance_group": [{"count": 1, "kind": "KIND_CPU"}],
    "response_cache": {},
}


@pytest.mark.parametrize("head", [LOGITS, LABELS])
@pytest.mark.parametrize("image_input", [FLOAT, UINT8])
def test_onnxruntime(bundles: Bundles, tmp_path: Path, image_input: fd.ImageInput, head: fd.Head) -> None:
    """Whatever ends the artifact has, clients meet the same ones."""
    assert written(bundles(image_input, head, 1), tmp_path / "one") == COMMON | {
        "backend": "onnxruntime",
        "platform": "onnxruntime_onnx",
        "input": [
            {"name": "pixels", "data_type": "TYPE_UINT8", "dims": [S, S, "3"], "reshape": {"shape": [ONE, S, S, "3"]}}
        ],
        "output": [{"name": "labels", "data_type": "TYPE_UINT8", "dims": [S, S], "reshape": {"shape": [ONE, S, S]}}],
        "model_warmup": [warm_up(None, S, S)],
        "parameters": {},
    }
    assert written(bundles(image_input, head, 4), tmp_path / "four") == COMMON | {
        "backend": "onnxruntime",
        "platform": "onnxruntime_onnx",
        "max_batch_size": 4,
        "input": [{"name": "pixels", "data_type": "TYPE_UINT8", "dims": [S, S, "3"]}],
        "output": [{"name": "labels", "data_type": "TYPE_UINT8", "dims": [S, S]}],
        "dynamic_batching": {"preferred_batch_size": [4], "max_queue_delay_microseconds": "1000"},
        "model_warmup": [warm_up(1, S, S), warm_up(4, S, S)],
        "parameters": {},
    }


@pytest.mark.parametrize("head", [LOGITS, LABELS])
@pytest.mark.parametrize("image_input", [FLOAT, UINT8])
def test_python(bundles: Bundles, tmp_path: Path, image_input: fd.ImageInput, head: fd.Head) -> None:
    artifact = "artifact" if (image_input, head) == (FLOAT, LOGITS) else "artifact.onnx"
    labels = {"name": "labels", "data_type": "TYPE_UINT8", "dims": ["-1", "-1"]}
    pixels = {"name": "pixels", "data_type": "TYPE_UINT8", "dims": ["-1", "-1", "3"]}

    assert written(bundles(image_input, head, 1), tmp_path / "one", backend=PYTHON) == COMMON | {
        "backend": "python",
        "input": [pixels],
        "output": [labels],
        "model_warmup": [warm_up(None, S, S)],
        "parameters": {"artifact": artifact, "provider": "cpu"},
    }
    assert written(
        bundles(image_input, head, 4), tmp_path / "four", backend=PYTHON, instances=3, queue_delay_us=0
    ) == COMMON | {
        "backend": "python",
        "max_batch_size": 4,
        "input": [pixels | {"allow_ragged_batch": True}],
        "output": [labels],
        "instance_group": [{"count": 3, "kind": "KIND_CPU"}],
        "dynamic_batching": {"preferred_batch_size": [4]},
        "model_warmup": [warm_up(4, S, S)],
        "parameters": {"artifact": artifact, "provider": "cpu"},
    }


CUDA = {
    "name": "cuda",
    "parameters": {
        "use_tf32": "0", "enable_cuda_graph": "0", "prefer_nhwc": "0", "cudnn_conv_algo_search": "EXHAUSTIVE",
    },
}  # fmt: skip


def test_where_graphs_run_on_gpus(bundles: Bundles, tmp_path: Path) -> None:
    """Under the options this toolkit compares models with: float32 products stay float32."""
    cuda = written(bundles(FLOAT, LOGITS, 1), tmp_path / "cuda", provider=fd.Provider.CUDA, instances=2)
    assert cuda["instance_group"] == [{"count": 2, "kind": "KIND_GPU"}]
    assert cuda["optimization"]["execution_accelerators"] == {"gpu_execution_accelerator": [CUDA]}

    tensorrt = written(
        bundles(FLOAT, LOGITS, 4),
        tmp_path / "tensorrt",
        provider=fd.Provider.TENSORRT,
        workspace_mb=512,
        engine_cache="/var/cache",
    )
    accelerator = {
        "name": "tensorrt",
        "parameters": {
            "precision_mode": "FP32",
            "max_workspace_size_bytes": "536870912",
            "trt_engine_cache_enable": "1",
            "trt_engine_cache_path": "/var/cache",
            "trt_profile_min_shapes": "pixels:1x96x96x3",
            "trt_profile_opt_shapes": "pixels:4x96x96x3",
            "trt_profile_max_shapes": "pixels:4x96x96x3",
        },
    }
    assert tensorrt["optimization"]["execution_accelerators"] == {"gpu_execution_accelerator": [accelerator, CUDA]}


def test_the_python_backend_keeps_to_the_gpu_that_its_runtime_takes(bundles: Bundles, tmp_path: Path) -> None:
    found = written(bundles(FLOAT, LOGITS, 1), tmp_path / "p", backend=PYTHON, provider=fd.Provider.CUDA)

    assert found["instance_group"] == [{"count": 1, "kind": "KIND_GPU", "gpus": [0]}]
    assert found["parameters"]["provider"] == "cuda"
