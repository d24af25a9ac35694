"""The runner of an artifact: TensorRT's for an engine, ONNX Runtime's for everything else."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from fcn_deploy.artifact import Artifact, is_engine
from fcn_deploy.artifact.bundle import Bundle
from fcn_deploy.artifact.engine import Engine
from fcn_deploy.choices import Provider
from fcn_deploy.errors import UsageError
from fcn_deploy.runtime.nvidia import Cuda
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.session_cache import MIN_MODEL_BYTES, PreparedModel, default_cache
from fcn_deploy.runtime.tensorrt_flavour import find_flavour

if TYPE_CHECKING:
    from fcn_deploy.runtime.ort import OrtRunner
    from fcn_deploy.runtime.tensorrt import TrtRunner


def check_provider(path: Path, provider: Provider) -> None:
    """Check, before an artifact is read, that `provider` is for it and would run on this machine.

    Raises:
        ProviderError: the provider is missing.
        UsageError: a provider is asked for, and the artifact is an engine.
    """
    if is_engine(path):
        _check_no_provider(path, provider)
        return
    from fcn_deploy.runtime.ort import require_provider

    require_provider(provider)


def check_engine(engine: Engine) -> None:
    """Check, before any work, that an engine would run on this machine.

    Raises:
        BundleError: it was built for another TensorRT or GPU.
        ProviderError: TensorRT or a GPU is missing.
    """
    from fcn_deploy.runtime.tensorrt import check_device, check_version

    check_version(engine, find_flavour(engine.flavour))
    check_device(engine, Cuda().device)


def runner_for(artifact: Artifact, provider: Provider, *, use_cache: bool = True) -> Union["OrtRunner", "TrtRunner"]:
    """Return the runner of an artifact; it knows where its nodes are placed once it is open.

    With `use_cache` large models open from their prepared session on a CPU, which their first run writes.

    Raises:
        BundleError: an engine was built by another TensorRT.
        ProviderError: the engine's TensorRT is not installed.
        UsageError: a provider is asked for, and the artifact is an engine.
    """
    if isinstance(artifact, Engine):
        _check_no_provider(artifact.path, provider)
        from fcn_deploy.runtime.tensorrt import TrtRunner

        return TrtRunner(artifact)
    from fcn_deploy.runtime.ort import OrtRunner

    return OrtRunner(artifact.model_path, OrtOptions(provider), prepared=_prepared(artifact) if use_cache else None)


def _prepared(artifact: Bundle) -> PreparedModel | None:
    """Return where the session of a model is kept; None for small ones, which open in no time."""
    size = artifact.model_path.stat().st_size
    return PreparedModel(default_cache(), artifact.model_sha256, size) if size >= MIN_MODEL_BYTES else None


def _check_no_provider(path: Path, provider: Provider) -> None:
    if provider is not Provider.CPU:
        raise UsageError(
            f"provider {provider}: {path} is an engine, which runs with the TensorRT that built it",
            remedy="Omit --provider: it applies to ONNX files only.",
        )
