"""NVIDIA's driver and libraries: what is installed, what to install when something is missing, and driver calls."""

import contextlib
import ctypes
import importlib
import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_deploy.artifact.engine import Device
from fcn_deploy.errors import ProviderError
from fcn_deploy.installation import onnxruntime_wheels

Version = tuple[int, int]

_DRIVER = "libcuda.so.1"
_LIBRARIES = "pip install 'onnxruntime-gpu[cuda,cudnn]'"
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_STREAM_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
_NAME_BYTES = 256
# The libraries that ONNX Runtime's CUDA provider loads, each after its dependencies.
_NEEDED = ("libcublasLt", "libcublas", "libnvrtc", "libcurand", "libcufft", "libcudart", "libcudnn")
# (part of the message, remedy); the first match is used.
_REMEDIES = (
    ("too old", "Install a newer NVIDIA driver."),
    ("insufficient", "Install a newer NVIDIA driver."),
    ("no NVIDIA driver", f"Install an NVIDIA driver, then {_LIBRARIES}."),
    ("libcudnn", "pip install 'onnxruntime-gpu[cudnn]'."),
    ("libnvinfer", "pip install tensorrt."),
    ("TensorRT", "pip install tensorrt."),
)


def library_version(name: str, function: str | None) -> int | None:
    """Return the result of a library's version function: 0 without a function, None when the library does not load."""
    try:
        library = ctypes.CDLL(name)
    except OSError:
        return None
    version = ctypes.c_int(0)
    if function is not None:
        getattr(library, function)(ctypes.byref(version))
    return version.value


def driver_cuda_version() -> Version | None:
    """Return the newest CUDA the installed driver can run, e.g. (13, 0), or None without a driver."""
    found = library_version(_DRIVER, "cuDriverGetVersion")
    return None if found is None else _version(found)


def _version(number: int) -> Version:
    return number // 1000, number % 1000 // 10


def driver_problem(found: Version | None, needed: Version | None) -> str | None:
    """Return why a driver cannot run a build for CUDA `needed`, or None when it can or `needed` is unknown.

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
    """Return why ONNX Runtime's library for `provider` ("cuda", "tensorrt") does not load, with the loader's message.

    Call it only after ONNX Runtime has tried: the library looks for its host once, while it is loaded.
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
    """Load the libraries of NVIDIA's wheels from wherever on Python's path they are, unless the loader finds them.

    ONNX Runtime itself looks beside its own package only, so it misses those that PyTorch installed elsewhere.
    """
    for library in _libraries_of_wheels():
        for name in (library.name, str(library)):
            try:
                ctypes.CDLL(name)
            except OSError:
                continue
            break


def _libraries_of_wheels() -> list[Path]:
    """Return the needed libraries from wheels (`nvidia/<part>/lib`), in loading order."""
    package = importlib.util.find_spec("nvidia")
    if package is None:
        return []
    folders = [folder for place in package.submodule_search_locations or () for folder in Path(place).glob("*/lib")]
    return [library for name in _NEEDED for folder in folders for library in folder.glob(f"{name}.so.*")]


def preload_tensorrt() -> None:
    """Load TensorRT's libraries, if pip installed them, by importing its package."""
    if importlib.util.find_spec("tensorrt") is not None:
        with contextlib.suppress(ImportError, OSError):
            importlib.import_module("tensorrt")


def remedy(problem: str) -> str:
    """Return what to install for a problem that `driver_problem`, the loader or ONNX Runtime reported."""
    return next((advice for part, advice in _REMEDIES if part in problem), f"{_LIBRARIES}.")


def clashing_wheels() -> dict[str, str]:
    """Return versions by name of distributions that overwrite each other's `onnxruntime` in one folder."""
    wheels = onnxruntime_wheels()
    folders = [wheel.folder for wheel in wheels]
    return {wheel.name: wheel.version for wheel in wheels if folders.count(wheel.folder) > 1}


def current_device() -> Device | None:
    """Return the first GPU, or None without a driver or a GPU."""
    try:
        return Cuda().device
    except ProviderError:
        return None


class Cuda:
    """The driver, and its first GPU.

    Attributes:
        device: the GPU.

    Raises:
        ProviderError: there is no driver, or no GPU.
    """

    def __init__(self) -> None:
        try:
            self._library = ctypes.CDLL(_DRIVER)
        except OSError as error:
            raise ProviderError(
                f"no NVIDIA driver ({_DRIVER} is not found)", remedy="Run this on a machine with an NVIDIA GPU."
            ) from error
        self._call("cuInit", 0)
        self._ordinal = ctypes.c_int()
        self._call("cuDeviceGet", ctypes.byref(self._ordinal), 0)
        self.device = self._described()

    def make_current(self) -> None:
        """Use the device's primary context on this thread."""
        context = ctypes.c_void_p()
        self._call("cuDevicePrimaryCtxRetain", ctypes.byref(context), self._ordinal)
        self._call("cuCtxSetCurrent", context)

    def release(self) -> None:
        """Release the primary context."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._ordinal)

    def stream(self) -> int:
        """Create a stream."""
        stream = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(stream), _STREAM_NON_BLOCKING)
        return int(stream.value or 0)

    def destroy_stream(self, stream: int) -> None:
        """Destroy a stream."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def synchronize(self, stream: int) -> None:
        """Wait until everything on `stream` has finished."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def allocate(self, size: int) -> int:
        """Allocate `size` bytes on the GPU; returns their address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return int(address.value)

    def free(self, address: int) -> None:
        """Free memory on the GPU."""
        self._call("cuMemFree_v2", ctypes.c_uint64(address))

    def to_device(self, address: int, array: npt.NDArray[Any], stream: int) -> None:
        """Copy a contiguous array to the GPU, on `stream`."""
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyHtoDAsync_v2", ctypes.c_uint64(address), _pointer(array), size, ctypes.c_void_p(stream))

    def to_host(self, array: npt.NDArray[Any], address: int, stream: int) -> None:
        """Copy from the GPU to a contiguous array, on `stream`."""
        size = ctypes.c_size_t(array.nbytes)
        self._call("cuMemcpyDtoHAsync_v2", _pointer(array), ctypes.c_uint64(address), size, ctypes.c_void_p(stream))

    def begin_capture(self, stream: int) -> None:
        """Start to record this thread's work on `stream` instead of running it."""
        self._call("cuStreamBeginCapture_v2", ctypes.c_void_p(stream), _CAPTURE_THREAD_LOCAL)

    def end_capture(self, stream: int) -> int:
        """End the recording; returns an executable graph."""
        graph, executable = ctypes.c_void_p(), ctypes.c_void_p()
        self._call("cuStreamEndCapture", ctypes.c_void_p(stream), ctypes.byref(graph))
        try:
            self._call("cuGraphInstantiateWithFlags", ctypes.byref(executable), graph, ctypes.c_ulonglong(0))
        finally:
            self._call("cuGraphDestroy", graph)
        return int(executable.value or 0)

    def launch_graph(self, graph: int, stream: int) -> None:
        """Run an executable graph on `stream`."""
        self._call("cuGraphLaunch", ctypes.c_void_p(graph), ctypes.c_void_p(stream))

    def destroy_graph(self, graph: int) -> None:
        """Destroy an executable graph."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def _described(self) -> Device:
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, self._ordinal)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        capability = self._attribute(_COMPUTE_CAPABILITY_MAJOR), self._attribute(_COMPUTE_CAPABILITY_MINOR)
        return Device(name.value.decode(), "{}.{}".format(*capability), "{}.{}".format(*_version(version.value)))

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._ordinal)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            reason = (text.value or b"unknown error").decode()
            raise ProviderError(
                f"the NVIDIA driver's {name} failed: {reason} ({status})",
                remedy="Run `fcn-deploy doctor` to check the installation.",
            )


def _pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
