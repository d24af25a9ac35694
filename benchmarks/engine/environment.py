"""The machine and the software of a benchmark: everything that has to be the same for two figures to be comparable."""

import contextlib
import os
import platform
import shutil
import subprocess
from collections.abc import Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil

from benchmarks.stats.timing import clock_overhead_ns
from fcn_deploy.installation import package_versions

_LISTED = ("openvino", "nvidia-cudnn-cu13", "nvidia-cublas", "tensorrt")
_BUSY_SECONDS = 0.5
# Other processes that use more than this share of one core are reported.
_BUSY_NOTE = 0.25
# Above this share of stolen time, the hypervisor explains a few percent of noise.
_STOLEN_NOTE = 0.01
# Lets PyTorch use huge pages for large maps, which makes it a fifth faster on CPUs. Set for every row.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}


def available_cores() -> tuple[int, ...]:
    """Return the cores this process may use, one hardware thread of each, as the operating system numbers them."""
    process = psutil.Process()
    if not hasattr(process, "cpu_affinity"):  # macOS has none
        return tuple(range(psutil.cpu_count(logical=False) or 1))
    allowed = sorted(process.cpu_affinity())
    first_of: dict[str, int] = {}
    for cpu in allowed:
        siblings = Path(f"/sys/devices/system/cpu/cpu{cpu}/topology/thread_siblings_list")
        name = siblings.read_text(encoding="ascii").strip() if siblings.exists() else str(cpu)
        first_of.setdefault(name, cpu)
    return tuple(first_of.values())


def describe(cores: Sequence[int], command: Sequence[str]) -> dict[str, Any]:
    """Return the machine, its state and the software as a JSON-ready dictionary; takes half a second to watch it."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": list(command),
        "commit": _commit(),
        "cpu": cpu_name(),
        "cores": len(cores),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "memory_bytes": psutil.virtual_memory().total,
        "scaling_governor": _read("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor"),
        "busy_cores_before": busy_cores(),
        "clock_overhead_ns": clock_overhead_ns(),
        "gpus": [],
        "visible_devices": os.environ.get("CUDA_VISIBLE_DEVICES"),
        "huge_pages": os.environ.get("THP_MEM_ALLOC_ENABLE", HUGE_PAGES["THP_MEM_ALLOC_ENABLE"]) == "1",
        "versions": package_versions(_LISTED),
    }


def cpu_times() -> dict[str, float]:
    """Return the seconds of all cores by what they were spent on, as psutil names it."""
    # `user` and `nice` include the times of guests.
    return {name: spent for name, spent in psutil.cpu_times()._asdict().items() if not name.startswith("guest")}


def stolen_share(before: Mapping[str, float]) -> float | None:
    """Return the share of the processor's time that the hypervisor gave to other machines; None where it is unknown.

    Args:
        before: the processor's times when the run began, from `cpu_times`.
    """
    now = cpu_times()
    total = sum(now.values()) - sum(before.values())
    return (now["steal"] - before["steal"]) / total if "steal" in now and total > 0 else None


def busy_cores() -> float:
    """Return how many cores other processes use while this process sleeps."""
    shares = psutil.cpu_times_percent(_BUSY_SECONDS)
    idle = sum(getattr(shares, name, 0.0) for name in ("idle", "iowait", "steal"))
    return max(0.0, 1 - idle / 100) * (psutil.cpu_count() or 1)


def notes(environment: Mapping[str, Any]) -> tuple[str, ...]:
    """Return, as sentences, the reasons to doubt figures that were measured in this environment."""
    found = []
    busy = environment.get("busy_cores_before")
    if busy is not None and busy > _BUSY_NOTE:
        found.append(f"Before the run other processes kept {busy:.1f} cores busy.")
    stolen = environment.get("stolen_share")
    if stolen is not None and stolen > _STOLEN_NOTE:
        found.append(f"The hypervisor gave {stolen:.0%} of the processor's time to other machines.")
    for gpu in environment.get("gpus", []):
        if gpu.get("other_processes"):
            taken = gpu["other_processes_bytes"] / 1e9
            found.append(f"{gpu['name']}: {gpu['other_processes']} other processes hold {taken:.1f} GB on it.")
    for gpu in environment.get("gpus_during", []):
        reasons = ", ".join(gpu.get("throttled_by", []))
        found += [f"{gpu['name']} was throttled: {reasons}."] if reasons else []
    return tuple(found)


def cpu_name() -> str:
    """Return the name of the processor."""
    text = _read("/proc/cpuinfo") or ""
    names = [line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _commit() -> str | None:
    """Return the commit this code was checked out from; None for an installed package."""
    git, here = shutil.which("git"), Path(__file__).parents[2]
    if git is None or not (here / ".git").exists():
        return None
    done = subprocess.run([git, "-C", here, "rev-parse", "HEAD"], capture_output=True, text=True, check=False)  # noqa: S603 - fixed arguments
    return done.stdout.strip() or None


def _read(path: str) -> str | None:
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except OSError:
        return None


# Bits of nvmlDeviceGetCurrentClocksEventReasons (nvml.h) that slow a GPU down; an idle or unthrottled one sets none.
_THROTTLING = {
    0x4: "power cap", 0x8: "hardware slowdown", 0x20: "thermal (software)", 0x40: "thermal (hardware)",
    0x80: "power brake",
}  # fmt: skip
_WATCHED = ("sm_mhz", "memory_mhz", "power_w")


def gpu_states() -> list[dict[str, Any]]:
    """Return one dictionary per GPU; nothing without a driver or without nvidia-ml-py.

    Keys: name, driver, memory in bytes (total, used), clocks in MHz (sm, memory), power and its limit in watts, reasons
    for throttling, and the other processes that compute on it.
    """
    try:
        import pynvml
    except ImportError:
        return []
    try:
        pynvml.nvmlInit()
    except pynvml.NVMLError:
        return []
    try:
        return [_state(pynvml, index) for index in range(pynvml.nvmlDeviceGetCount())]
    finally:
        pynvml.nvmlShutdown()


def visible_gpus() -> list[dict[str, Any]]:
    """Return the GPUs that CUDA programs started from here see, where CUDA_VISIBLE_DEVICES names them by number."""
    states, chosen = gpu_states(), os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
    if not all(number.strip().isdigit() for number in chosen):
        return states
    return [states[int(number)] for number in chosen if int(number) < len(states)]


def ranges_of(readings: Iterable[Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
    """Return per GPU its name, clocks and power as [lowest, highest], and all reasons for throttling.

    Args:
        readings: what `visible_gpus` returned at several times.
    """
    found = []
    for states in zip(*readings, strict=False):
        values = {name: [state[name] for state in states if name in state] for name in _WATCHED}
        ranges = {name: [min(seen), max(seen)] for name, seen in values.items() if seen}
        reasons = sorted({reason for state in states for reason in state.get("throttled_by", [])})
        found.append({"name": states[0]["name"], **ranges, "throttled_by": reasons})
    return found


def _state(nvml: Any, index: int) -> dict[str, Any]:
    device = nvml.nvmlDeviceGetHandleByIndex(index)
    state: dict[str, Any] = {"name": nvml.nvmlDeviceGetName(device), "driver": nvml.nvmlSystemGetDriverVersion()}
    readings: dict[str, Callable[[], Any]] = {
        "memory_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(device).total,
        "used_bytes": lambda: nvml.nvmlDeviceGetMemoryInfo(device).used,
        "sm_mhz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_SM),
        "memory_mhz": lambda: nvml.nvmlDeviceGetClockInfo(device, nvml.NVML_CLOCK_MEM),
        "power_w": lambda: nvml.nvmlDeviceGetPowerUsage(device) / 1000,
        "power_limit_w": lambda: nvml.nvmlDeviceGetEnforcedPowerLimit(device) / 1000,
        "throttled_by": lambda: throttling(nvml.nvmlDeviceGetCurrentClocksThrottleReasons(device)),
    }
    # Virtual and partitioned GPUs refuse some of these readings, which are then omitted.
    for name, read in readings.items():
        with contextlib.suppress(nvml.NVMLError):
            state[name] = read()
    with contextlib.suppress(nvml.NVMLError):
        others = [p for p in nvml.nvmlDeviceGetComputeRunningProcesses(device) if p.pid != os.getpid()]
        state["other_processes"] = len(others)
        state["other_processes_bytes"] = sum(p.usedGpuMemory or 0 for p in others)
    return state


def throttling(reasons: int) -> list[str]:
    """Return the reasons for which a GPU is throttled, from NVML's bit mask."""
    return [name for bit, name in _THROTTLING.items() if reasons & bit]
