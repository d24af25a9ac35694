"""What drivers of tests do instead of running Ray."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Generator


def stay() -> Generator[tuple[int, int] | None, None, None]:
    """Yield this process and one it started, and then stay for a minute, whatever signals ask for."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    with subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"]) as worker:
        yield os.getpid(), worker.pid
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            time.sleep(1)
        yield None
