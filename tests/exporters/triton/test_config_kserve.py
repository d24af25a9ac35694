from pathlib import Path

import pytest
import yaml

from exporters.triton.config import write_inference_service

# What the classes of KServe's SDK 0.21 (V1beta1InferenceService and its parts) write for the same service.
MODEL = {"modelFormat": {"name": "triton"}, "protocolVersion": "v2", "storageUri": "s3://models/fcn"}
GPUS = {"limits": {"nvidia.com/gpu": "1"}, "requests": {"nvidia.com/gpu": "1"}}


@pytest.mark.parametrize(("gpu", "model"), [(False, MODEL), (True, MODEL | {"resources": GPUS})], ids=["CPU", "GPU"])
def test_the_manifest_is_what_kserves_own_classes_write(tmp_path: Path, gpu: bool, model: dict[str, object]) -> None:
    write_inference_service(tmp_path / "service.yaml", "fcn8s", "s3://models/fcn", gpu=gpu)

    assert yaml.safe_load((tmp_path / "service.yaml").read_text()) == {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": "fcn8s"},
        "spec": {"predictor": {"model": model}},
    }


@pytest.mark.parametrize(("name", "label"), [
    ("fcn8s", "fcn8s"), ("FCN_8s.v2", "fcn-8s-v2"), ("8s", "model-8s"), ("a_", "a"),
])  # fmt: skip
def test_names_become_those_that_kubernetes_takes(tmp_path: Path, name: str, label: str) -> None:
    write_inference_service(tmp_path / "service.yaml", name, "s3://models/fcn", gpu=False)

    assert yaml.safe_load((tmp_path / "service.yaml").read_text())["metadata"] == {"name": label}
