"""What comes before any figure: is the machine fit, and do the tests for GPUs pass on it?"""

import contextlib
import importlib.util
import os
import signal
import subprocess
import sys
from pathlib import Path

from benchmarks.environment import available_cores
from benchmarks.processes import same_packages
from benchmarks.readme import ROOT

DOCTOR_FILE, TESTS_FILE = "doctor.txt", "gpu-tests.txt"
# Import paths and warnings as on the host: its packages are of other versions than the project's own.
_PYTEST = ("-m", "pytest", "-m", "gpu", "-q", "-o", "addopts=--import-mode=importlib", "-o", "filterwarnings=default")
# They share the GPU; most of their time goes into exports.
_MOST_PROCESSES = 4
_FOLDERS = ("tests/fcn_deploy/runtime", "tests/benchmarks/test_node_times.py")


def doctor(output: Path, seconds: float = 60.0) -> None:
    """Write what `fcn-deploy doctor` finds, or what it has printed within `seconds`."""
    command = [sys.executable, "-m", "fcn_deploy", "doctor"]
    with (output / DOCTOR_FILE).open("wb") as log, contextlib.suppress(subprocess.TimeoutExpired):
        subprocess.run(  # noqa: S603 - our own command
            command,
            env=os.environ | same_packages(),
            stdout=log,
            stderr=subprocess.STDOUT,
            timeout=seconds,
            check=False,
        )


def run_gpu_tests(output: Path, seconds: float) -> None:
    """Run the tests marked `gpu`, for at most `seconds`, and write what they print."""
    processes = min(_MOST_PROCESSES, len(available_cores()) // 2)
    parallel = ("-n", str(processes)) if processes > 1 and importlib.util.find_spec("xdist") is not None else ()
    command = [sys.executable, *_PYTEST, *parallel, "-p", "no:cacheprovider", *_FOLDERS]
    with (output / TESTS_FILE).open("wb") as log:
        running = subprocess.Popen(  # noqa: S603 - our own command
            command,
            cwd=ROOT,
            stdout=log,
            stderr=subprocess.STDOUT,
            env=os.environ | same_packages(),
            start_new_session=True,  # so that its own processes can be ended with it
        )
        try:
            running.wait(timeout=seconds)
        except subprocess.TimeoutExpired:
            log.write(f"\nstopped after {seconds:.0f} s\n".encode())
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(running.pid, signal.SIGKILL)
            running.wait()
