"""`make fuzz`: blocks of cases in processes of their own, for some minutes; goes on where the last run stopped."""

import argparse
import json
import multiprocessing
import shutil
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from fcn_deploy.storage import staged_file
from tests.fuzz.run import Block, Outcome, run_block
from tests.fuzz.targets import TARGETS

CASES_PER_BLOCK = 150


def main() -> int:
    """Run until the time is over; returns 1 when there were findings."""
    parser = argparse.ArgumentParser(prog="python -m tests.fuzz", description=__doc__)
    parser.add_argument("--minutes", type=float, default=8.0)
    parser.add_argument("--seed", type=int, default=0, help="of the first block")
    parser.add_argument("--targets", nargs="+", choices=TARGETS, default=TARGETS)
    parser.add_argument("--output", type=Path, default=Path("build/fuzz"))
    options = parser.parse_args()
    path = options.output / f"seed-{options.seed}.json"
    state: dict[str, Any] = {"next": {}, "cases": {}, "findings": []}
    if path.exists():
        state |= json.loads(path.read_text(encoding="utf-8"))
    end = time.monotonic() + 60 * options.minutes
    while time.monotonic() < end:
        target = min(options.targets, key=lambda name: (state["next"].get(name, 0), TARGETS.index(name)))
        number = state["next"].get(target, 0)
        outcome = run_apart(Block(target, options.seed + 1_000_003 * number, CASES_PER_BLOCK))
        state["next"][target] = number + 1
        state["cases"][target] = state["cases"].get(target, 0) + outcome.cases
        if outcome.finding:
            state["findings"].append({"target": target, "block": number, "finding": outcome.finding})
        with staged_file(path) as staging:
            staging.write_text(json.dumps(state, indent=2), encoding="utf-8")
        total, found = sum(state["cases"].values()), len(state["findings"])
        text = outcome.finding or f"nothing, {outcome.grown_bytes / 1e6:.0f} MB"
        print(f"{total:6d} cases, {found} findings; {target} block {number}: {text}", flush=True)
    counts = Counter(state["cases"])
    print(", ".join(f"{name} {counts[name]}" for name in TARGETS))
    print(f"{counts.total()} cases, {len(state['findings'])} findings, in {path}")
    return 1 if state["findings"] else 0


def run_apart(block: Block) -> Outcome:
    """Run a block in a process of its own, which a case may end."""
    folder = Path(tempfile.mkdtemp(prefix="fuzz-"))
    try:
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            return pool.submit(run_block, block, folder).result()
    except BrokenProcessPool:
        return Outcome(0, "the process was ended by a signal", 0)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main())
