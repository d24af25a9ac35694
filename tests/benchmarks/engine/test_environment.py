import os
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from benchmarks.engine import environment


def test_this_machine() -> None:
    found = environment.describe((0, 1), ("fcn-deploy", "bench"))

    assert found["cores"] == 2
    assert found["cpu"]
    assert found["date"].endswith("+00:00")
    assert 0 <= found["busy_cores_before"] <= (os.cpu_count() or 1)
    assert found["versions"]["fcn-deploy"]


def test_nothing_of_the_machines_owner_is_recorded() -> None:
    """Besides what was typed, which is the user's own to choose."""
    text = str(environment.describe((0,), ()))

    home = str(Path.home())
    assert home == "/" or home not in text
    assert str(Path(sys.prefix)) not in text
    assert len(os.uname().nodename) < 4 or os.uname().nodename not in text


def test_cores_are_those_this_process_may_use() -> None:
    found = environment.available_cores()

    assert set(found) <= os.sched_getaffinity(0)
    assert found


def test_busy_neighbours_are_noted() -> None:
    assert environment.notes({"busy_cores_before": 0.2, "gpus": []}) == ()
    assert environment.notes({"busy_cores_before": 0.5, "gpus": []}) == (
        "Before the run other processes kept 0.5 cores busy.",
    )


@pytest.mark.parametrize(("bits", "names"), [
    (0x0, []), (0x1, []), (0x4, ["power cap"]), (0x8 | 0x40, ["hardware slowdown", "thermal (hardware)"]),
    (0x20 | 0x80, ["thermal (software)", "power brake"]),
])  # fmt: skip
def test_throttling_by_nvmls_bits(bits: int, names: list[str]) -> None:
    assert environment.throttling(bits) == names


class NVMLError(Exception):
    pass


def nvml(**changes: object) -> SimpleNamespace:
    """NVML as its binding offers it: one GPU, two processes, one of them this one."""

    def refused(*_: object) -> None:
        raise NVMLError("not supported")

    processes = [SimpleNamespace(pid=os.getpid(), usedGpuMemory=9), SimpleNamespace(pid=1, usedGpuMemory=2_000_000_000)]
    offered: dict[str, object] = {
        "NVMLError": NVMLError, "NVML_CLOCK_SM": 1, "NVML_CLOCK_MEM": 2,
        "nvmlInit": lambda: None, "nvmlShutdown": lambda: None, "nvmlDeviceGetCount": lambda: 1,
        "nvmlDeviceGetHandleByIndex": lambda i: i, "nvmlDeviceGetName": lambda _: "NVIDIA H100",
        "nvmlSystemGetDriverVersion": lambda: "580.1",
        "nvmlDeviceGetMemoryInfo": lambda _: SimpleNamespace(total=80, used=3),
        "nvmlDeviceGetClockInfo": lambda _, kind: {1: 1980, 2: 2619}[kind],
        "nvmlDeviceGetPowerUsage": lambda _: 98_500, "nvmlDeviceGetEnforcedPowerLimit": refused,
        "nvmlDeviceGetCurrentClocksThrottleReasons": lambda _: 0x4,
        "nvmlDeviceGetComputeRunningProcesses": lambda _: processes,
    }  # fmt: skip
    return SimpleNamespace(**offered | changes)


def test_what_a_gpu_refuses_to_say_is_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", nvml())

    assert environment.gpu_states() == [
        {
            "name": "NVIDIA H100", "driver": "580.1", "memory_bytes": 80, "used_bytes": 3, "sm_mhz": 1980,
            "memory_mhz": 2619, "power_w": 98.5, "throttled_by": ["power cap"], "other_processes": 1,
            "other_processes_bytes": 2_000_000_000,
        }
    ]  # fmt: skip


def test_without_a_driver_there_are_no_gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    def refused() -> None:
        raise NVMLError("driver not loaded")

    monkeypatch.setitem(sys.modules, "pynvml", nvml(nvmlInit=refused))
    assert environment.gpu_states() == []
    monkeypatch.setitem(sys.modules, "pynvml", None)
    assert environment.gpu_states() == []


def test_only_visible_gpus_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "gpu_states", lambda: [{"name": "a"}, {"name": "b"}])

    for chosen, names in ((None, "ab"), ("", "ab"), ("1", "b"), ("1,0", "ba"), ("GPU-uuid", "ab"), ("7", "")):
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if chosen is not None:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", chosen)
        assert "".join(gpu["name"] for gpu in environment.visible_gpus()) == names


def test_what_a_gpu_did_while_rows_ran_on_it() -> None:
    readings: list[list[dict[str, object]]] = [
        [{"name": "NVIDIA H100", "sm_mhz": clock, "throttled_by": reasons}]
        for clock, reasons in ((1980, []), (1200, ["power cap"]), (1500, ["power cap", "thermal (software)"]))
    ]

    assert environment.ranges_of(readings) == [
        {"name": "NVIDIA H100", "sm_mhz": [1200, 1980], "throttled_by": ["power cap", "thermal (software)"]}
    ]
    assert environment.ranges_of([]) == []


def test_stolen_time_is_a_share_of_all_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(environment, "cpu_times", lambda: {"user": 100.0, "idle": 70.0, "steal": 30.0})

    assert environment.stolen_share({"user": 50.0, "idle": 40.0, "steal": 10.0}) == 0.2
    assert environment.notes({"stolen_share": 0.2, "gpus": []}) == (
        "The hypervisor gave 20% of the processor's time to other machines.",
    )
    monkeypatch.setattr(environment, "cpu_times", lambda: {"user": 100.0, "idle": 70.0})
    assert environment.stolen_share({"user": 50.0, "idle": 40.0}) is None


def test_times_of_guests_do_not_count_twice() -> None:
    assert {"user", "idle"} <= environment.cpu_times().keys()
    assert not any(name.startswith("guest") for name in environment.cpu_times())
