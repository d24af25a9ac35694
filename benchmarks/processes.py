"""The parent's end of a row's process: call its methods, learn how it died, get rid of it."""

import contextlib
import os
import pickle
import select
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from benchmarks.messages import Failure
from fcn_deploy.errors import FcnDeployError

_LAST_BYTES = 4000
# PyTorch then asks for huge pages for its large maps, which makes it a fifth faster here: every PyTorch row has it,
# whoever starts the benchmark.
HUGE_PAGES = {"THP_MEM_ALLOC_ENABLE": "1"}


class Process:
    """A process of `benchmarks.worker`, started at once; what it prints goes to `log`.

    Args:
        log: file for what it prints.
        variables: environment variables besides this process's own.
        limit_s: seconds after which it is ended when it has not answered; None waits for ever.
    """

    def __init__(self, log: Path, variables: Mapping[str, str] | None = None, limit_s: float | None = None) -> None:
        self._log, self._limit_s = log, limit_s
        # The same packages as here, and none that lie about in the working directory (-P).
        environment = HUGE_PAGES | os.environ | same_packages() | dict(variables or {})
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "benchmarks.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                # Ctrl-C is for the parent alone, which decides what becomes of the rows.
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def call(self, method: str, *arguments: Any) -> Any:
        """Call a method of the process's worker: its result, or a `Failure` when it raised or died.

        Raises:
            FcnDeployError: the worker raised it.
        """
        self.send(method, *arguments)
        return self.receive()

    def send(self, method: str, *arguments: Any) -> None:
        """Call without waiting for the answer, which has to be received before the next call."""
        # A process that died is found by receive().
        with contextlib.suppress(BrokenPipeError):
            stdin = self._process.stdin
            if stdin is not None:
                pickle.dump((method, arguments), stdin)
                stdin.flush()

    def receive(self) -> Any:
        """The answer to what was sent, or a `Failure`.

        Raises:
            FcnDeployError: the worker raised it.
        """
        answers = self._process.stdout
        if answers is None or not select.select([answers], [], [], self._limit_s)[0]:
            self.close()
            return Failure(False, f"its process gave no answer within {self._limit_s:g} s")
        try:
            answer = pickle.load(answers)  # noqa: S301 - our own process
        except (EOFError, pickle.UnpicklingError):
            return self._death()
        if isinstance(answer, FcnDeployError):
            raise answer
        return answer

    def close(self) -> None:
        """End the process, whatever it is doing."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                with contextlib.suppress(BrokenPipeError):
                    stream.close()

    def _death(self) -> Failure:
        code = self._process.wait()
        if code == -signal.SIGKILL:
            return Failure(True, "its process was killed, which is how Linux ends one when memory runs out")
        ending = f"by {signal.Signals(-code).name}" if code < 0 else f"with exit code {code}"
        return Failure(False, f"its process ended {ending}{self._last_words()}")

    def _last_words(self) -> str:
        text = self._log.read_bytes()[-_LAST_BYTES:].decode(errors="replace").strip()
        return f": {text.splitlines()[-1][:300]}" if text else ""


def same_packages() -> dict[str, str]:
    """The environment variable that lets another process find the packages that this one finds."""
    return {"PYTHONPATH": os.pathsep.join(path for path in sys.path if path)}
