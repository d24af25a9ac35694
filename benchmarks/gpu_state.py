"""The state of NVIDIA GPUs through NVML: what they are, how they are clocked, and who else uses them."""

import contextlib
import os
from collections.abc import Iterator
from typing import Any

# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h) that slow a GPU down; an idle or unthrottled one sets none.
_THROTTLING = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal (software)", 0x40: "thermal (hardware)",
    0x80: "power brake",
}  # fmt: skip
_WATCHED = ("sm_mhz", "memory_mhz", "power_w")


def gpu_states() -> list[dict[str, Any]]:
    """One dictionary per GPU; empty without a driver or without nvidia-ml-py.

    Keys: name, driver, memory in bytes (total, used), clocks in MHz (sm, memory), power and its limit in watts, what
    throttles it, and the other processes that compute on it.
    """
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    with _shutdown(pynvml):
        return [_state(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]


def visible_gpus() -> list[dict[str, Any]]:
    """The GPUs that CUDA programs started from here see, as far as CUDA_VISIBLE_DEVICES names them by number."""
    states, chosen = gpu_states(), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if not all(number.strip().isdigit() for number in chosen):
        return states
    return [states[int(number)] for number in chosen if int(number) < len(states)]


class GpuWatch:
    """What the visible GPUs did while rows ran on them: looked at after every turn of a row."""

    def __init__(self) -> None:
        self._looks: list[list[dict[str, Any]]] = []

    def look(self) -> None:
        """Take a reading now."""
        self._looks.append(visible_gpus())

    def summary(self) -> list[dict[str, Any]]:
        """Per GPU: its name, every clock and power as (lowest, highest), and everything that ever throttled it."""
        found = []
        for readings in zip(*self._looks, strict=False):
            ranges: dict[str, list[float]] = {}
            for name in _WATCHED:
                values = [reading[name] for reading in readings if name in reading]
                ranges |= {name: [min(values), max(values)]} if values else {}
            reasons = sorted({reason for reading in readings for reason in reading.get("throttled_by", [])})
            found.append({"name": readings[0]["name"], **ranges, "throttled_by": reasons})
        return found


@contextlib.contextmanager
def _shutdown(nvml: Any) -> Iterator[None]:
    try:
        yield
    finally:
        nvml.nvmlShutdown()


def _state(nvml: Any, index: int) -> dict[str, Any]:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    state: dict[str, Any] = {"name": nvml.nvmlDeviceGetName(device), "driver": nvml.nvmlSystemGetDriverVersion()}
    # Virtual and partitioned GPUs refuse some of these: what is refused is left out.
    for read in (_memory, _clocks, _power, _throttling, _processes):
        with contextlib.suppress(nvml.NVMLError):
            state |= read(nvml, device)
    return state


def _memory(nvml: Any, device: Any) -> dict[str, Any]:
    memory = nvml.nvmlDeviceGetMemoryInfo(device)
    return {"memory_bytes": memory.total, "used_bytes": memory.used}


def _clocks(nvml: Any, device: Any) -> dict[str, Any]:
    return {
        "sm_mhz": nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
        "memory_mhz": nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
    }


def _power(nvml: Any, device: Any) -> dict[str, Any]:
    return {
        "power_w": nvml.nvmlDeviceGetPowerUsage(device) / 1000,
        "power_limit_w": nvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1000,
    }


def _throttling(nvml: Any, device: Any) -> dict[str, Any]:
    return {"throttled_by": throttling(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device))}


def _processes(nvml: Any, device: Any) -> dict[str, Any]:
    others = [p for p in nvml.nvmlDeviceGetComputeRunningProcesses(device) if p.pid != os.getpid()]
    return {"other_processes": len(others), "other_processes_bytes": sum(p.usedGpuMemory or 0 for p in others)}


def throttling(reasons: int) -> list[str]:
    """The names of what slows a GPU down, from NVML's bit mask."""
    return [name for bit, name in _THROTTLING.items() if reasons & bit]
