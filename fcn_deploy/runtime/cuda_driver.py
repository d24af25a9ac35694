"""As much of CUDA's driver API as a runner needs, called in the driver's own library.

Every GPU machine has that library; a Python binding of CUDA would be one more thing to install and to match. TensorRT's
runtime API and this share the device's primary context. Names and values are those of cuda.h (CUDA 12 and 13); device 0
is the first of CUDA_VISIBLE_DEVICES.
"""

import ctypes
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from fcn_deploy.errors import ProviderError

_LIBRARY = "libcuda.so.1"
_COMPUTE_CAPABILITY_MAJOR, _COMPUTE_CAPABILITY_MINOR = 75, 76
_STREAM_NON_BLOCKING = 1
_CAPTURE_THREAD_LOCAL = 1
_NAME_BYTES = 256


@dataclass(frozen=True)
class Device:
    """A GPU.

    Attributes:
        name: as the driver calls it.
        capability: its compute capability, e.g. `8.9`.
        driver: the newest CUDA its driver runs, e.g. `13.0`.
    """

    name: str
    capability: str
    driver: str

    def __str__(self) -> str:
        return f"{self.name} (compute capability {self.capability})"


def current_device() -> Device | None:
    """The first GPU, or None without a driver or a GPU."""
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
            self._library = ctypes.CDLL(_LIBRARY)
        except OSError as error:
            raise ProviderError(
                f"no NVIDIA driver ({_LIBRARY} is not found)", remedy="Run this on a machine with an NVIDIA GPU."
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
        """Give the primary context back."""
        self._call("cuDevicePrimaryCtxRelease_v2", self._ordinal)

    def stream(self) -> int:
        """A new stream."""
        made = ctypes.c_void_p()
        self._call("cuStreamCreate", ctypes.byref(made), _STREAM_NON_BLOCKING)
        return int(made.value or 0)

    def destroy_stream(self, stream: int) -> None:
        """End a stream."""
        self._call("cuStreamDestroy_v2", ctypes.c_void_p(stream))

    def synchronize(self, stream: int) -> None:
        """Wait until everything on `stream` has finished."""
        self._call("cuStreamSynchronize", ctypes.c_void_p(stream))

    def allocate(self, size: int) -> int:
        """`size` bytes on the GPU, by address."""
        address = ctypes.c_uint64()
        self._call("cuMemAlloc_v2", ctypes.byref(address), ctypes.c_size_t(size))
        return int(address.value)

    def free(self, address: int) -> None:
        """Give memory back."""
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
        """Record what this thread puts on `stream` from now on instead of running it."""
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
        """End an executable graph."""
        self._call("cuGraphExecDestroy", ctypes.c_void_p(graph))

    def _described(self) -> Device:
        name = ctypes.create_string_buffer(_NAME_BYTES)
        self._call("cuDeviceGetName", name, _NAME_BYTES, self._ordinal)
        version = ctypes.c_int()
        self._call("cuDriverGetVersion", ctypes.byref(version))
        major, minor = self._attribute(_COMPUTE_CAPABILITY_MAJOR), self._attribute(_COMPUTE_CAPABILITY_MINOR)
        return Device(name.value.decode(), f"{major}.{minor}", f"{version.value // 1000}.{version.value % 1000 // 10}")

    def _attribute(self, number: int) -> int:
        value = ctypes.c_int()
        self._call("cuDeviceGetAttribute", ctypes.byref(value), number, self._ordinal)
        return value.value

    def _call(self, name: str, *arguments: Any) -> None:
        status = getattr(self._library, name)(*arguments)
        if status:
            text = ctypes.c_char_p()
            self._library.cuGetErrorString(status, ctypes.byref(text))
            said = (text.value or b"unknown error").decode()
            raise ProviderError(
                f"the NVIDIA driver's {name} failed: {said} ({status})",
                remedy="`fcn-deploy doctor` shows what is there.",
            )


def _pointer(array: npt.NDArray[np.generic]) -> ctypes.c_void_p:
    return ctypes.c_void_p(array.ctypes.data)
