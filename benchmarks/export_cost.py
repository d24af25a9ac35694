"""Measure the cost of an export as a whole process against a plain script: wall time and peak memory, in turn.

Run as `python -m benchmarks.export_cost [ROUNDS]`; prints a Markdown table of medians. Both write the same network
(FCN-32s, 500x500, random weights) to a new directory. The plain script (`--plain OUTPUT.onnx`) is what one writes
without this toolkit; it compares one random image. `fcn-deploy export` compares a photo and noise, the graphs before
and after simplification, and hashes what it writes.
"""

import os
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass

ROUNDS = 3
PLAIN = "--plain"
COMMANDS = {
    "plain script": ("-m", "benchmarks.export_cost", PLAIN, "{out}.onnx"),
    "fcn-deploy export": ("-m", "fcn_deploy", "export", "--variant", "32s", "--output", "{out}"),
}


@dataclass(frozen=True)
class Cost:
    """The cost of one process: wall time in seconds, peak resident memory in bytes."""

    seconds: float
    peak_bytes: int


def plain_export(path: str) -> float:
    """Export FCN-32s the plain way; return the largest absolute difference between PyTorch and ONNX Runtime."""
    import numpy as np
    import onnx
    import onnxruntime
    import onnxsim
    import torch

    from fcn_deploy import fcn32s

    network = fcn32s().eval()
    image = torch.randn(1, 3, 500, 500) * 60
    torch.onnx.export(network, (image,), path, dynamo=True, opset_version=18, external_data=False, verbose=False)
    simplified, valid = onnxsim.simplify(onnx.load(path))
    if not valid:
        raise RuntimeError("onnxsim reports an invalid model")
    onnx.save(simplified, path)
    with torch.inference_mode():
        expected = network(image).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    (found,) = session.run(None, {session.get_inputs()[0].name: image.numpy()})
    return float(np.abs(expected - found).max())


def run_once(arguments: tuple[str, ...]) -> Cost:
    """Run Python with `arguments` in a process of its own, writing below a directory that is removed afterwards.

    Raises:
        RuntimeError: the process failed.
    """
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, *(a.format(out=f"{folder}/out") for a in arguments)]
        start = time.perf_counter()
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE) as process:  # noqa: S603
            message = process.stderr.read().decode() if process.stderr else ""
            # The operating system's own account of this one process, which Popen does not keep. Linux starts it at
            # the size of the parent, which therefore loads no packages.
            _, status, usage = os.wait4(process.pid, 0)
            process.returncode = os.waitstatus_to_exitcode(status)
        seconds = time.perf_counter() - start
    if process.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{message}")
    # Linux counts in KiB, macOS in bytes.
    return Cost(seconds, usage.ru_maxrss * (1 if sys.platform == "darwin" else 1024))


def measure(rounds: int) -> dict[str, list[Cost]]:
    """Run every command `rounds` times in turn, so that a machine that slows down slows both."""
    costs: dict[str, list[Cost]] = {name: [] for name in COMMANDS}
    for _ in range(rounds):
        for name, arguments in COMMANDS.items():
            costs[name].append(run_once(arguments))
    return costs


def table(costs: dict[str, list[Cost]]) -> str:
    """Return medians as a Markdown table, with each command's ratio to the first."""
    medians = {
        name: (statistics.median(c.seconds for c in runs), statistics.median(c.peak_bytes for c in runs))
        for name, runs in costs.items()
    }
    base_seconds, base_bytes = next(iter(medians.values()))
    lines = ["| command | wall time | peak memory | time ratio | memory ratio |", "|---|---|---|---|---|"]
    for name, (seconds, peak) in medians.items():
        ratios = f"{seconds / base_seconds:.2f} | {peak / base_bytes:.2f}"
        lines.append(f"| {name} | {seconds:.1f} s | {peak / 1e9:.2f} GB | {ratios} |")
    return "\n".join(lines)


if __name__ == "__main__":
    if sys.argv[1:2] == [PLAIN]:
        print(f"largest difference {plain_export(sys.argv[2]):.2e}")
    else:
        print(table(measure(int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS)))
