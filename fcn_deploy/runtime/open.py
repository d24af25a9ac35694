"""The runner an artifact needs: TensorRT's for a plan, ONNX Runtime's for everything else."""

from pathlib import Path
from typing import TYPE_CHECKING, Union

from fcn_deploy.artifact.engine import open_engine
from fcn_deploy.choices import PLAN_SUFFIX, Provider
from fcn_deploy.errors import UsageError
from fcn_deploy.runtime.nvidia import Cuda
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.tensorrt_flavour import find_flavour

if TYPE_CHECKING:
    from fcn_deploy.runtime.ort import OrtRunner
    from fcn_deploy.runtime.tensorrt import TrtRunner


def check_runnable(path: Path, provider: Provider) -> None:
    """Check, before any work, that an artifact would run here.

    Raises:
        BundleError: an engine is damaged, or was built for another TensorRT or GPU.
        ProviderError: TensorRT, a GPU, or the provider asked for is missing.
        UsageError: a provider is asked for, and it is an engine.
    """
    if path.suffix != PLAN_SUFFIX:
        from fcn_deploy.runtime.ort import require_provider

        require_provider(provider)
        return
    _check_provider(path, provider)
    from fcn_deploy.runtime.tensorrt import check_device, check_version

    engine = open_engine(path)
    check_version(engine, find_flavour(engine.flavour))
    check_device(engine, Cuda().device)


def runner_for(path: Path, provider: Provider) -> Union["OrtRunner", "TrtRunner"]:
    """What runs the model at `path`, a plan or an ONNX file; both say where its nodes are placed once they are open.

    Raises:
        BundleError: an engine is damaged, or was built by another TensorRT.
        ProviderError: its TensorRT is not installed.
        UsageError: a provider is asked for, and it is an engine.
    """
    if path.suffix == PLAN_SUFFIX:
        _check_provider(path, provider)
        from fcn_deploy.runtime.tensorrt import TrtRunner

        return TrtRunner(path)
    from fcn_deploy.runtime.ort import OrtRunner

    return OrtRunner(path, OrtOptions(provider))


def _check_provider(path: Path, provider: Provider) -> None:
    if provider is not Provider.CPU:
        raise UsageError(
            f"provider {provider}: {path} is an engine, which runs with the TensorRT that built it",
            remedy="Leave --provider out: it is for ONNX files.",
        )
