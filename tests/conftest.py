"""Fixtures shared by all tests: narrow networks, and bundles that are exported once per run."""

import functools
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from filelock import FileLock
from PIL import Image

import fcn_deploy as fd
from tests.benchmarks import shared

# 16 times narrower than the real network in every layer but the classes: 0.2 % of its work.
NARROW = 16

CORES = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []

# Exit code, stdout, stderr.
Call = Callable[..., tuple[int, str, str]]
Run = Callable[..., "subprocess.CompletedProcess[str]"]
# Make a folder by a name and by what fills it; returns it.
Once = Callable[[str, Callable[[Path], object]], Path]


def narrow_options(output: Path, variant: fd.Variant = fd.Variant.FCN8S, size: int = 96) -> fd.ExportOptions:
    return fd.ExportOptions(variant, output, channel_divisor=NARROW, onnx=fd.OnnxOptions(size, size))


def pytest_configure(config: pytest.Config) -> None:
    """Let each of several test processes compute on one core, so that they are not in each other's way.

    None of them uses the prepared sessions of the user who runs them.
    """
    os.environ["FCN_DEPLOY_CACHE"] = tempfile.mkdtemp(prefix="fcn-deploy-tests-")
    if hasattr(config, "workerinput"):
        torch.set_num_threads(1)


def pytest_unconfigure() -> None:
    """Remove the prepared sessions of this process."""
    shutil.rmtree(os.environ.get("FCN_DEPLOY_CACHE", ""), ignore_errors=True)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Begin with the tests that take longest, so that no process is left alone with one at the end."""
    items.sort(key=lambda item: item.get_closest_marker("full") is None)


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Prepare this process for a test."""
    _share_cores(item)
    _keep_operator_table()


def _share_cores(item: pytest.Item) -> None:
    """Give each of several test processes a core of its own, but every core to tests of full size.

    Threads of one process that wait for one another spin, which takes time from the other test processes.
    """
    if hasattr(item.config, "workerinput") and hasattr(os, "sched_setaffinity"):
        number = int(item.config.workerinput["workerid"].removeprefix("gw"))
        own = CORES[number % len(CORES)]
        os.sched_setaffinity(0, CORES if item.get_closest_marker("full") else {own})


def _keep_operator_table() -> None:
    """Let PyTorch make its table of ONNX operators once for all exports: a quarter of what a narrow one takes."""
    registration = sys.modules.get("torch.onnx._internal.exporter._registration")
    made = getattr(getattr(registration, "ONNXRegistry", None), "from_torchlib", None)
    if made is not None and not hasattr(made, "cache_info"):
        registration.ONNXRegistry.from_torchlib = staticmethod(functools.cache(made))  # type: ignore[union-attr]


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Once:
    """Fill a folder once per run: the test process that asks first does, the others use it. No test may change it."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent  # each process has a folder of its own in there

    def made(name: str, fill: Callable[[Path], object]) -> Path:
        folder, filled = root / "once" / name, root / "once" / f"{name}.filled"
        folder.parent.mkdir(exist_ok=True)
        with FileLock(root / "once" / f"{name}.lock", timeout=100):
            if not filled.exists():
                shutil.rmtree(folder, ignore_errors=True)  # half filled
                folder.mkdir()
                fill(folder)
                filled.touch()
        return folder

    return made


@pytest.fixture(scope="session")
def shared_bundle(once: Once) -> Path:
    """A verified, narrow FCN-8s bundle for 96x96; not to be changed by a test."""
    return once("shared", lambda folder: fd.export(narrow_options(folder / "bundle"))) / "bundle"


@pytest.fixture
def shared_preparations(once: Once, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let benchmarks in this process share the device's ceilings, and what they prepare for the rows of a model."""
    folder = once("preparations", lambda _: None)
    monkeypatch.setattr("benchmarks.engine.run.measure_ceilings", functools.partial(shared.ceilings, folder))
    monkeypatch.setattr("benchmarks.engine.run.prepare", functools.partial(shared.prepared, folder))


@pytest.fixture
def bundle(shared_bundle: Path, tmp_path: Path) -> Path:
    """A copy of the narrow bundle that a test may damage."""
    copy = tmp_path / "bundle"
    copy.mkdir()
    for file in shared_bundle.iterdir():
        (copy / file.name).write_bytes(file.read_bytes())
    return copy


@pytest.fixture
def photo(tmp_path: Path) -> Path:
    """A 60x80 picture with smooth and sharp parts."""
    rows, columns = np.indices((60, 80))
    pixels = np.stack([rows * 4, columns * 3, (rows // 20 + columns // 20) % 2 * 255], axis=2).astype(np.uint8)
    path = tmp_path / "photo.png"
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def run_cli(tmp_path: Path) -> Run:
    """Run `fcn-deploy` in a process of its own, in the test's own directory."""

    def run(*arguments: object, **options: object) -> "subprocess.CompletedProcess[str]":
        command = [sys.executable, "-m", "fcn_deploy", *map(str, arguments)]
        given = {"cwd": tmp_path, "capture_output": True, "text": True, "timeout": 300} | options
        return subprocess.run(command, check=False, **given)  # type: ignore[call-overload, no-any-return]

    return run


@pytest.fixture
def call_cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[Call]:
    """Call the command line in this process, which has PyTorch loaded already."""
    from fcn_deploy.cli.app import main

    monkeypatch.chdir(tmp_path)
    handler = signal.getsignal(signal.SIGTERM)

    def call(*arguments: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["fcn-deploy", *map(str, arguments)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as caught:
            main()
        output, errors = capsys.readouterr()
        return int(caught.value.code or 0), output, errors

    yield call
    signal.signal(signal.SIGTERM, handler)
