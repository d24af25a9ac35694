"""Processes of tests: none outlives its test, and no wait is without a limit."""

import contextlib
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any


@contextlib.contextmanager
def started(command: Sequence[object], **options: Any) -> Iterator["subprocess.Popen[str]"]:
    """Start a process that a SIGINT ends, as in a terminal; if it still runs when the block ends, it is killed."""
    # Whoever runs the tests in the background has SIGINT ignored, and children inherit that.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen([str(part) for part in command], text=True, **options)
    finally:
        signal.signal(signal.SIGINT, before)
    with process:
        try:
            yield process
        finally:
            process.kill()


def wait_until(condition: Callable[[], object], *, seconds: float = 60, pause: float = 0.01) -> None:
    """Return as soon as the condition holds; fail the test where it does not within the time."""
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, f"not within {seconds:g} s"
        time.sleep(pause)
