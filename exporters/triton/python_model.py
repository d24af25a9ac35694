"""A model of Triton's Python backend: the artifact as it is, and a model.py that runs it with this toolkit."""

import shutil
from pathlib import Path

from exporters.triton.options import TritonBackend
from exporters.triton.served import ANY, Placement, ServedModel, ServedTensor
from exporters.triton.work import Work
from fcn_deploy.bundle import MANIFEST_FILE, Bundle
from fcn_deploy.model_info import LABELS_NAME, PIXELS_NAME
from fcn_deploy.runtime.base import TensorSpec
from fcn_deploy.runtime.engine_file import Engine, sidecar_path
from fcn_deploy.runtime.provider import Provider

_ARTIFACT = "artifact"
_MODEL_PY = Path(__file__).parent / "python_backend" / "model.py"
_PIXELS = TensorSpec(PIXELS_NAME, (ANY, ANY, 3), "uint8")
_LABELS = TensorSpec(LABELS_NAME, (ANY, ANY), "uint8")


def write_python_model(work: Work) -> ServedModel:
    """Write the artifact and model.py; photos of any size go in, labels of their sizes come out."""
    version, batching = work.version(work.name), work.batching
    with work.on_step(f"copy {work.options.source}"):
        shutil.copyfile(_MODEL_PY, version / "model.py")
        copied = _copy_artifact(work.artifact, version)
    _, _, height, width = work.artifact.input_shape
    provider = work.options.provider or Provider.CPU
    gpu = isinstance(work.artifact, Engine) or provider is not Provider.CPU
    return ServedModel(
        work.name,
        TritonBackend.PYTHON,
        inputs=(ServedTensor(_PIXELS, ragged=batching is not None),),
        outputs=(ServedTensor(_LABELS),),
        warm_up=((height, width, 3) if batching is None else (batching.size, height, width, 3),),
        # The runtime takes the first GPU that it sees; Triton would put copies on all.
        placement=Placement(work.options.instances, gpu=gpu, first_gpu_only=gpu),
        batching=batching,
        parameters={"artifact": copied, "provider": str(provider), **work.facts()},
    )


def _copy_artifact(artifact: Bundle | Engine, version: Path) -> str:
    """Copy what `open_artifact` needs, no more; returns its name in `version`."""
    if isinstance(artifact, Bundle) and artifact.manifest is not None:
        for name in (*artifact.manifest["files"], MANIFEST_FILE):
            copy = version / _ARTIFACT / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(artifact.path / name, copy)
        return _ARTIFACT
    copy = version / f"{_ARTIFACT}{artifact.model_path.suffix}"
    shutil.copyfile(artifact.model_path, copy)
    if isinstance(artifact, Engine):
        shutil.copyfile(sidecar_path(artifact.path), sidecar_path(copy))
    return copy.name
