"""A real Triton server for tests: the binary and the Python backend of nvidia-pytriton, in `.venv-triton`."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import sysconfig
import time
import urllib.error
import urllib.request
from collections.abc import Sequence
from pathlib import Path
from typing import Self

import pytest

ROOT = Path(__file__).parents[3]
_VENV = ROOT / ".venv-triton"
_DEADLINE_S, _GOODBYE_S = 80, 30


def site_packages() -> Path:
    """Where nvidia-pytriton lies, or the test is skipped."""
    found = list(_VENV.glob("lib/python*/site-packages/pytriton/tritonserver"))
    if not found:
        pytest.skip("there is no Triton server: `make test` installs it into .venv-triton, on Linux on x86-64 only")
    return found[0].parents[1]


def backends(folder: Path) -> Path:
    """A backend directory with the Python backend, and its stub for the Python that runs the tests."""
    triton = site_packages() / "pytriton" / "tritonserver"
    python = folder / "python"
    shutil.copytree(triton / "backends" / "python", python)
    version = f"{sys.version_info.major}.{sys.version_info.minor}"
    stub = triton / "python_backend_stubs" / version / "triton_python_backend_stub"
    if not stub.exists():
        pytest.skip(f"the Triton server in .venv-triton runs no models with Python {version}")
    shutil.copy(stub, python)
    return folder


def free_ports(count: int) -> list[int]:
    """Ports of 127.0.0.1 that nothing listens on."""
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


class Server:
    """Triton on 127.0.0.1, ready when the block begins, gone when it ends.

    Args:
        folder: for its backends and its log.
        repositories: what it serves.
        arguments: further options.
    """

    def __init__(self, folder: Path, repositories: Sequence[Path], *arguments: str) -> None:
        self.log = folder / "triton.log"
        http, grpc, metrics = free_ports(3)
        self.http, self.grpc = f"127.0.0.1:{http}", f"127.0.0.1:{grpc}"
        triton = site_packages()
        self._command = [
            str(triton / "pytriton" / "tritonserver" / "bin" / "tritonserver"),
            *(f"--model-repository={path}" for path in repositories),
            f"--backend-directory={backends(folder / 'backends')}",
            *("--http-address=127.0.0.1", f"--http-port={http}"),
            *("--grpc-address=127.0.0.1", f"--grpc-port={grpc}"),
            *("--metrics-address=127.0.0.1", f"--metrics-port={metrics}"),
            *arguments,
        ]
        libraries = [str(sysconfig.get_config_var("LIBDIR")), str(triton / "nvidia_pytriton.libs")]
        # Models run with the first python3 of the path.
        path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
        self._environment = os.environ | {"PATH": path, "LD_LIBRARY_PATH": os.pathsep.join(libraries)}

    def __enter__(self) -> Self:
        with self.log.open("wb") as log:
            self._process = subprocess.Popen(
                self._command, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        try:
            self._wait()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._stop()

    @property
    def alive(self) -> bool:
        """Whether it still runs, and says that it is ready."""
        return self._process.poll() is None and self._ready()

    def _wait(self) -> None:
        deadline = time.monotonic() + _DEADLINE_S
        while not self._ready():
            if self._process.poll() is not None or time.monotonic() > deadline:
                pytest.fail(f"Triton did not become ready:\n{self.log.read_text()}")
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            with urllib.request.urlopen(f"http://{self.http}/v2/health/ready", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError):
            return False

    def _stop(self) -> None:
        """Asked first, so that it frees its shared memory; models have processes of their own, in the same session."""
        self._process.terminate()
        try:
            self._process.wait(_GOODBYE_S)
        except subprocess.TimeoutExpired:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait(_GOODBYE_S)
