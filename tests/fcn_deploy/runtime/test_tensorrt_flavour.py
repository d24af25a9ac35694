"""Which TensorRT there is, and what it says."""

import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

import fcn_deploy as fd
from fcn_deploy.choices import FlavourName
from fcn_deploy.runtime.tensorrt_flavour import Log, Message, find_flavour, worst
from tests.engines import rtx

ROOT = Path(__file__).parents[3]


@pytest.fixture
def without_tensorrt(tmp_path: Path) -> dict[str, str]:
    """The environment of a Python that has every installed package but TensorRT's."""
    packages = tmp_path / "packages"
    packages.mkdir()
    for entry in Path(sysconfig.get_paths()["purelib"]).iterdir():
        if not entry.name.startswith("tensorrt"):
            (packages / entry.name).symlink_to(entry)
    return os.environ | {"PYTHONPATH": os.pathsep.join([str(ROOT), str(packages)])}


@pytest.mark.parametrize(("arguments", "message"), [
    ((), "error: neither tensorrt nor tensorrt_rtx is installed\npip install 'fcn-deploy[tensorrt]' on the machine"),
    (
        ("--flavour", "tensorrt"),
        "error: flavour tensorrt needs tensorrt, which is not installed\npip install 'fcn-deploy[tensorrt]'\n",
    ),
    (
        ("--flavour", "tensorrt-rtx"),
        "error: flavour tensorrt-rtx needs tensorrt_rtx, which is not installed\n"
        "pip install 'fcn-deploy[tensorrt-rtx]'\n",
    ),
])  # fmt: skip
def test_missing_tensorrt_exits_4(
    without_tensorrt: dict[str, str], shared_bundle: Path, arguments: tuple[str, ...], message: str
) -> None:
    # -S leaves site-packages out.
    command = [sys.executable, "-S", "-m", "fcn_deploy", "tensorrt", str(shared_bundle), *arguments]
    done = subprocess.run(command, env=without_tensorrt, capture_output=True, text=True, check=False, timeout=120)

    assert done.returncode == 4
    assert done.stderr.startswith(message)
    assert done.stdout == ""


def test_rtx_builds_for_gpus_by_name() -> None:
    flavour = rtx()

    assert flavour is find_flavour(FlavourName.RTX)
    assert str(flavour) == f"TensorRT-RTX {flavour.version}"
    assert {"7.5", "8.0", "8.6", "8.9", "12.0"} <= set(flavour.capabilities)
    assert flavour.capability("8.9") == flavour.trt.ComputeCapability.SM89
    assert flavour.build_targets(("8.9",)) == [flavour.trt.ComputeCapability.SM89]
    assert flavour.build_targets(()) == [flavour.trt.ComputeCapability.CURRENT]
    assert flavour.builds_without_gpu
    assert flavour.captures_by_itself
    assert not flavour.times_kernels
    with pytest.raises(fd.UsageError) as caught:
        flavour.capability("9.0")
    assert caught.value.problem == f"compute capability 9.0: {flavour} builds for {', '.join(flavour.capabilities)}"


def test_the_log_is_kept_for_whoever_listens() -> None:
    log = Log(rtx().trt)
    with log.listening() as outer:
        log.add(1, "first  line\nand second")
        with log.listening() as inner:
            log.add(2, "careful")
            log.add(4, "chatter")
            log.add(4, "Layers:\nName: conv1_1")
    log.add(0, "too late")

    assert outer == [Message(1, "first  line\nand second"), Message(2, "careful"), inner[1]]
    assert inner == [Message(2, "careful"), Message(4, "Layers:\nName: conv1_1")]
    assert worst(outer) == "first line and second"
    assert worst(outer, up_to=2) == "first line and second; careful"
    assert worst(inner) == ""
