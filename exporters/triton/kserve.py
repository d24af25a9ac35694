"""The KServe InferenceService that serves a repository on Kubernetes."""

import re
from pathlib import Path
from typing import Any

_INVALID = re.compile(r"[^a-z0-9-]+")


def inference_service(name: str, storage_uri: str, *, gpu: bool) -> dict[str, Any]:
    """The manifest as a document.

    KServe's names begin with a lower-case letter and go on with such letters, digits and hyphens; `name` is made one.
    """
    label = _INVALID.sub("-", name.lower()).strip("-")
    model: dict[str, Any] = {
        "modelFormat": {"name": "triton"},
        "protocolVersion": "v2",
        "storageUri": storage_uri,
    }
    if gpu:
        model["resources"] = {kind: {"nvidia.com/gpu": "1"} for kind in ("limits", "requests")}
    return {
        "apiVersion": "serving.kserve.io/v1beta1",
        "kind": "InferenceService",
        "metadata": {"name": label if label[:1].isalpha() else f"model-{label}"},
        "spec": {"predictor": {"model": model}},
    }


def write_inference_service(path: Path, name: str, storage_uri: str, *, gpu: bool) -> None:
    """Write the manifest as YAML."""
    import yaml

    document = inference_service(name, storage_uri, gpu=gpu)
    path.write_text(yaml.safe_dump(document, sort_keys=False), encoding="utf-8")
