import re
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.export_cost import COMMANDS, Cost, run_once, table

MEASURED = """
from benchmarks.export_cost import run_once
cost = run_once(("-c", "import time; x = bytearray(200_000_000); time.sleep(0.5)"))
print(cost.seconds, cost.peak_bytes)
"""


def test_cost_of_a_process_that_takes_memory_and_time() -> None:
    """From a process of its own: the account of a child begins at its parent's size, and this one is large."""
    done = subprocess.run([sys.executable, "-c", MEASURED], capture_output=True, text=True, check=True, timeout=100)
    seconds, peak_bytes = map(float, done.stdout.split())

    assert 0.5 < seconds < 30
    assert 200e6 < peak_bytes < 260e6


def test_output_goes_to_a_directory_that_is_removed() -> None:
    code = "import sys, pathlib; p = pathlib.Path(sys.argv[1]); p.write_text('x'); sys.exit(str(p))"

    with pytest.raises(RuntimeError, match=r"failed:\n/") as caught:
        run_once(("-c", code, "{out}"))

    path = str(caught.value).splitlines()[-1]
    assert re.fullmatch(r"/.*/out", path)
    assert not Path(path).exists()


def test_the_table_has_medians_and_ratios_to_the_first() -> None:
    costs = {
        "plain": [Cost(10, 4_000_000_000), Cost(30, 4_000_000_000), Cost(20, 4_200_000_000)],
        "ours": [Cost(10, 2_000_000_000), Cost(12, 2_000_000_000), Cost(9, 2_000_000_000)],
    }

    assert table(costs).splitlines()[2:] == [
        "| plain | 20.0 s | 4.00 GB | 1.00 | 1.00 |",
        "| ours | 10.0 s | 2.00 GB | 0.50 | 0.50 |",
    ]


def test_the_peer_is_listed_first() -> None:
    assert list(COMMANDS) == ["plain script", "fcn-deploy export"]
