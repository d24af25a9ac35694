import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from exporters.triton.config import write_inference_service

# In a process of its own: KServe's SDK and tritonclient register messages of the same names.
BY_KSERVE = """
import json
import kserve
from kubernetes.client import V1ObjectMeta, V1ResourceRequirements


def plain(thing):
    if not hasattr(thing, "attribute_map"):
        return thing
    found = {key: plain(getattr(thing, name)) for name, key in thing.attribute_map.items()}
    return {key: value for key, value in found.items() if value not in (None, "")}


gpus = V1ResourceRequirements(limits={"nvidia.com/gpu": "1"}, requests={"nvidia.com/gpu": "1"})
for resources in (None, gpus):
    model = kserve.V1beta1ModelSpec(
        model_format=kserve.V1beta1ModelFormat(name="triton"),
        protocol_version="v2",
        storage_uri="s3://models/fcn",
        resources=resources,
    )
    service = kserve.V1beta1InferenceService(
        api_version="serving.kserve.io/v1beta1",
        kind="InferenceService",
        metadata=V1ObjectMeta(name="fcn8s"),
        spec=kserve.V1beta1InferenceServiceSpec(predictor=kserve.V1beta1PredictorSpec(model=model)),
    )
    print(json.dumps(plain(service)))
"""


def test_the_manifest_is_what_kserves_own_classes_write(tmp_path: Path) -> None:
    done = subprocess.run([sys.executable, "-c", BY_KSERVE], capture_output=True, text=True, check=True, timeout=100)

    for gpu, expected in zip((False, True), done.stdout.splitlines(), strict=True):
        write_inference_service(tmp_path / "service.yaml", "fcn8s", "s3://models/fcn", gpu=gpu)
        assert yaml.safe_load((tmp_path / "service.yaml").read_text()) == json.loads(expected)


@pytest.mark.parametrize(("name", "label"), [
    ("fcn8s", "fcn8s"), ("FCN_8s.v2", "fcn-8s-v2"), ("8s", "model-8s"), ("a_", "a"),
])  # fmt: skip
def test_names_become_those_that_kubernetes_takes(tmp_path: Path, name: str, label: str) -> None:
    write_inference_service(tmp_path / "service.yaml", name, "s3://models/fcn", gpu=False)

    assert yaml.safe_load((tmp_path / "service.yaml").read_text())["metadata"] == {"name": label}
