"""Count the gain of the rewrites, and time and compare the graphs before and after them, at 500x500 and full width.

Run as `python -m benchmarks.rewrite_gain [cpu|cuda|tensorrt]`; prints a Markdown table. All graphs run on the CPU, in
turn. `fcn-deploy bench` compares them with other runtimes.
"""

import itertools
import sys
import time
from collections.abc import Sequence
from contextlib import ExitStack

import numpy as np
import numpy.typing as npt

from exporters.onnx import OnnxOptions, export_graph
from exporters.rewrite import exact_passes, rewrite, totals
from exporters.simplify import simplify
from fcn_deploy import Geometry, NetworkSpec, Variant
from fcn_deploy.choices import Target
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.models.weights import random_network
from fcn_deploy.parity.inputs import photo_input
from fcn_deploy.runtime.base import Bound
from fcn_deploy.runtime.run_graph import open_graph

HEADINGS = (
    "network", "multiply-adds: plain → windows → fast convolutions", "nodes", "file", "times as fast (quartiles)",
    "max error / range of windows, of all",
)  # fmt: skip
ROUNDS = 15


def measure(variant: Variant, geometry: Geometry, target: Target) -> tuple[str, ...]:
    """Export, simplify and rewrite one network with random weights and biases, and run its graphs on a photo.

    Returns the cells of `HEADINGS` after the first. Errors are over the range of the plain graph's logits.
    """
    network = random_network(NetworkSpec(variant, geometry), 0)
    plain, _ = simplify(export_graph(network, OnnxOptions()))
    passes = exact_passes(target)
    windows, _ = rewrite(plain, target, [one for one in passes if one.same_sums])
    fast, _ = rewrite(windows, target, [one for one in passes if not one.same_sums])
    models = (plain, windows, fast)
    counts = [totals(model) for model in models]
    with ExitStack() as stack:
        runners = [stack.enter_context(open_graph(model)) for model in models]
        sizes = [runner.path.stat().st_size for runner in runners]
        bindings = [runner.bind() for runner in runners]
        logits = [_logits(bound) for bound in bindings]
        faster = times_as_fast(bindings[0], bindings[-1])
    errors = [np.abs(found - logits[0]).max() / np.ptp(logits[0]) for found in logits[1:]]
    return (
        f"{' → '.join(f'{count.multiply_adds / 1e9:.1f}' for count in counts)} G",
        " → ".join(str(count.nodes) for count in counts),
        f"{(sizes[-1] - sizes[0]) / 1e6:+.1f} MB",
        faster,
        ", ".join(f"{error:.1e}" for error in errors),
    )


def _logits(bound: Bound) -> npt.NDArray[np.float64]:
    """Return the logits of a photo, which stays uploaded."""
    bound.upload({"image": photo_input(SAMPLE_PHOTO, (1, 3, 500, 500)).image})
    bound.run()
    return bound.download()["logits"].astype(np.float64)


def times_as_fast(plain: Bound, ours: Bound) -> str:
    """Return how many times as fast the second graph is: the median over pairs of runs, with the quartiles."""
    ratios = np.array([_seconds(plain) / _seconds(ours) for _ in range(ROUNDS)])
    low, middle, high = np.quantile(ratios, (0.25, 0.5, 0.75))
    return f"{middle:.2f} ({low:.2f}..{high:.2f})"


def _seconds(bound: Bound) -> float:
    start = time.perf_counter()
    bound.run()
    return time.perf_counter() - start


def main(arguments: Sequence[str]) -> None:
    """Measure every variant in both geometries."""
    target = Target(arguments[0]) if arguments else Target.CPU
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for geometry, variant in itertools.product(Geometry, Variant):
        cells = measure(variant, geometry, target)
        print(f"| FCN-{variant} {geometry} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
