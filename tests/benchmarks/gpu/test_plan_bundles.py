"""Bundles made by real processes, which are stopped and killed."""

import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from benchmarks.engine.environment import available_cores
from benchmarks.engine.workspace import Workspace
from benchmarks.gpu.plan import BundleMaker, Entry, Exports
from fcn_deploy import Precision, Provider, Variant
from tests.processes import wait_until

PLAN = (
    Entry(Variant.FCN32S, Precision.FP32, ("ort",)),
    Entry(Variant.FCN16S, Precision.FP32, ("ort",)),
)


@pytest.fixture
def maker(tmp_path: Path) -> Iterator[BundleMaker]:
    with BundleMaker(PLAN, Exports(tmp_path, Provider.CPU, 64, 32), available_cores()[:1]) as made:
        yield made


def process_of(maker: BundleMaker) -> int:
    """The number of the only process, once there is one."""
    wait_until(lambda: maker._processes)
    (process,) = maker._processes.values()
    return process.pid


def state(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="the system does not list processes")
def test_a_pause_stops_and_a_death_ends_one_bundle_alone(maker: BundleMaker) -> None:
    first = process_of(maker)
    with maker.paused():
        time.sleep(0.05)
        assert state(first) == "T"
        assert not any(future.done() for future in maker.futures.values())
    os.kill(first, signal.SIGKILL)

    died, other = (maker.futures[entry].result(timeout=60) for entry in PLAN)

    assert died == "its process was killed, as Linux does when memory runs out"
    assert isinstance(other, Workspace)
    assert other.model_path.is_file()
    assert (other.folder / "reference-1.npy").is_file()
    assert process_of(maker) != first


def test_nothing_is_left_running(tmp_path: Path) -> None:
    with BundleMaker(PLAN, Exports(tmp_path, Provider.CPU, 64, 32), available_cores()[:1]) as maker:
        process = process_of(maker)

    assert not Path(f"/proc/{process}").exists()
    assert all(future.done() for future in maker.futures.values())
