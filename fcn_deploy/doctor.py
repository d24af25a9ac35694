"""Check whether this machine can export, verify and run. Every finding comes with a remedy."""

import platform
import shutil
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from fcn_deploy.choices import FlavourName, Provider
from fcn_deploy.errors import ProviderError
from fcn_deploy.installation import onnxruntime_wheels, package_versions
from fcn_deploy.runtime import nvidia
from fcn_deploy.runtime.tensorrt_flavour import find_flavour

# Peak memory and disk space of a full-size export, rounded up.
NEEDED_MEMORY_BYTES = 3_000_000_000
NEEDED_DISK_BYTES = 1_200_000_000
_ORT_REMEDY = "pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu"


class Status(StrEnum):
    """How serious a finding is: only a problem prevents the toolkit from working."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True)
class Finding:
    """The result of one check.

    Attributes:
        name: what was checked.
        status: how serious it is.
        value: what was found.
        remedy: what to do about it; empty when there is nothing to do.
    """

    name: str
    status: Status
    value: str
    remedy: str = ""


def examine() -> tuple[Finding, ...]:
    """Check versions, ONNX Runtime and its providers, NVIDIA's libraries, TensorRT, memory and disk."""
    return (*_versions(), *_onnxruntime(), *_nvidia(), *_tensorrt(), *_room())


def _versions() -> list[Finding]:
    system = f"{platform.python_version()} on {platform.system()} {platform.machine()}"
    return [Finding("python", Status.OK, system)] + [
        Finding(name, Status.OK, version) for name, version in package_versions().items()
    ]


def _onnxruntime() -> list[Finding]:
    try:
        from fcn_deploy.runtime import ort
    except ImportError as error:
        return [Finding("onnxruntime", Status.PROBLEM, f"cannot be imported: {error}", _ORT_REMEDY)]
    findings = [*_wheels(), Finding("providers built in", Status.OK, ", ".join(ort.available_providers()))]
    for provider in Provider:
        problem = ort.provider_problem(provider)
        if problem is None:
            findings.append(Finding(f"provider {provider}", Status.OK, "loads and runs"))
        else:
            advice = f"Only for --provider {provider}: {nvidia.remedy(problem)}"
            findings.append(Finding(f"provider {provider}", Status.NOTE, problem, advice))
    return findings


def _wheels() -> list[Finding]:
    clashing, wheels = nvidia.clashing_wheels(), onnxruntime_wheels()
    if clashing:
        both = " and ".join(f"{name} {version}" for name, version in clashing.items())
        return [Finding("onnxruntime wheels", Status.PROBLEM, f"{both} overwrite each other", _ORT_REMEDY)]
    if len(wheels) > 1:
        first, *rest = (f"{wheel.name} {wheel.version}" for wheel in wheels)
        hidden = f"{first} is found first and hides {', '.join(rest)}"
        return [Finding("onnxruntime wheels", Status.NOTE, hidden, "Uninstall what you do not use.")]
    return []


def _nvidia() -> list[Finding]:
    driver = nvidia.driver_cuda_version()
    if driver is None:
        return [Finding("NVIDIA driver", Status.NOTE, "none (no libcuda.so.1)", "Only needed for --provider cuda.")]
    cudnn = Finding("cuDNN 9", Status.OK, "found")
    if nvidia.library_version("libcudnn.so.9", None) is None:
        cudnn = Finding("cuDNN 9", Status.NOTE, "not found", "pip install 'onnxruntime-gpu[cudnn]'.")
    return [Finding("NVIDIA driver", Status.OK, f"for CUDA up to {driver[0]}.{driver[1]}"), cudnn]


def _tensorrt() -> list[Finding]:
    findings = []
    for name in FlavourName:
        try:
            findings.append(Finding(name, Status.OK, find_flavour(name).version))
        except ProviderError as error:
            advice = f"Only for fcn-deploy tensorrt and its engines: {error.remedy}"
            findings.append(Finding(name, Status.NOTE, error.problem, advice))
    return findings


def _room() -> list[Finding]:
    memory, disk = available_memory_bytes(), shutil.disk_usage(Path.cwd()).free
    return [
        _enough("free memory", memory, NEEDED_MEMORY_BYTES, "Close something, or export on a larger machine."),
        _enough("free disk here", disk, NEEDED_DISK_BYTES, "Free some space, or choose an --output on another disk."),
    ]


def available_memory_bytes() -> int:
    """Return the memory that can be used without swapping, caches included."""
    import psutil

    return int(psutil.virtual_memory().available)


def _enough(name: str, found: int, needed: int, remedy: str) -> Finding:
    value = f"{found / 1e9:.1f} GB"
    if found >= needed:
        return Finding(name, Status.OK, value)
    return Finding(name, Status.NOTE, f"{value}; a full-size export takes {needed / 1e9:.1f} GB", remedy)
