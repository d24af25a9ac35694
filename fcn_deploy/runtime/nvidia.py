"""What NVIDIA's side of a machine has: driver, libraries, and what to install when something is missing."""

import contextlib
import ctypes
import importlib
import importlib.util
from pathlib import Path

from fcn_deploy.version import onnxruntime_wheels

Version = tuple[int, int]

_DRIVER = "libcuda.so.1"
_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
# What ONNX Runtime's CUDA provider loads; each after those it needs itself.
_NEEDED = ("libcublasLt", "libcublas", "libnvrtc", "libcurand", "libcufft", "libcudart", "libcudnn")
# (what the message names, what to do); the first that fits counts.
_REMEDIES = (
    ("too old", "Install a newer NVIDIA driver."),
    ("insufficient", "Install a newer NVIDIA driver."),
    ("no NVIDIA driver", f"Install an NVIDIA driver, then {_LIBRARIES}."),
    ("libcudnn", "pip install 'onnxruntime-gpu[cudnn]'."),
    ("libnvinfer", "pip install tensorrt."),
    ("TensorRT", "pip install tensorrt."),
)


def library_version(name: str, function: str | None) -> int | None:
    """What a library's version function says: 0 without one to ask, None when the library cannot be loaded."""
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    version = ctypes.c_int(0)
    if function is not None:
        getattr(library, function)(ctypes.byref(version))
    return version.value


def driver_cuda_version() -> Version | None:
    """The newest CUDA the installed driver can run, e.g. (13, 0), or None without a driver."""
    found = library_version(_DRIVER, "cuDriverGetVersion")
    return None if found is None else (found // 1000, found % 1000 // 10)


def driver_problem(found: Version | None, needed: Version | None) -> str | None:
    """Why a driver cannot run a build for CUDA `needed`, or None when it can; an unknown need is no problem.

    Within one major version, CUDA runs on older drivers too (NVIDIA's minor version compatibility).
    """
    if found is None:
        return f"no NVIDIA driver ({_DRIVER} is not found)"
    if needed is not None and found[0] < needed[0]:
        return (
            f"the NVIDIA driver is too old: it runs CUDA up to {found[0]}.{found[1]}, "
            f"this onnxruntime is built for CUDA {needed[0]}.{needed[1]}"
        )
    return None


def provider_library_problem(provider: str) -> str | None:
    """What keeps ONNX Runtime's library for `provider` ("cuda", "tensorrt") from loading, in the loader's words.

    Only to be asked after ONNX Runtime has tried: the library looks for its host while it is loaded, once and for all.
    """
    package = importlib.util.find_spec("onnxruntime")
    if package is None or package.origin is None:
        return "onnxruntime is not installed"
    folder = Path(package.origin).parent / "capi"
    for name in ("libonnxruntime_providers_shared.so", f"libonnxruntime_providers_{provider}.so"):
        library = folder / name
        if library.exists():
            try:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                return str(error)
    return None


def preload_wheels() -> None:
    """Load the libraries of NVIDIA's wheels from wherever on Python's path they are, unless they can be found anyway.

    ONNX Runtime itself looks beside its own package only, so not where PyTorch brought them into another folder.
    """
    for library in _libraries_of_wheels():
        for name in (library.name, str(library)):
            try:
                ctypes.CDLL(name)
            except OSError:
                continue
            break


def _libraries_of_wheels() -> list[Path]:
    """The needed libraries in wheels, in the order to load them in; they are in `nvidia/<part>/lib`."""
    package = importlib.util.find_spec("nvidia")
    if package is None:
        return []
    folders = [folder for place in package.submodule_search_locations or () for folder in Path(place).glob("*/lib")]
    return [library for name in _NEEDED for folder in folders for library in folder.glob(f"{name}.so.*")]


def preload_tensorrt() -> None:
    """Load TensorRT's libraries from where pip put them, if they are there, which importing its package does."""
    if importlib.util.find_spec("tensorrt") is not None:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


def remedy(problem: str) -> str:
    """What to install against a problem that `driver_problem`, the loader or ONNX Runtime stated."""
    return next((advice for part, advice in _REMEDIES if part in problem), f"{_LIBRARIES}.")


def clashing_wheels() -> dict[str, str]:
    """Versions by name of distributions that overwrite each other's `onnxruntime`; empty unless two share a folder."""
    wheels = onnxruntime_wheels()
    folders = [wheel.folder for wheel in wheels]
    return {wheel.name: wheel.version for wheel in wheels if folders.count(wheel.folder) > 1}
