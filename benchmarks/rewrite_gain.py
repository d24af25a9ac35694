"""Count the gain of the exact rewrites, and compare the graphs' outputs, at 500x500 and full width.

Run as `python -m benchmarks.rewrite_gain [cpu|cuda|tensorrt]`; prints a Markdown table. Latencies are measured by
`fcn-deploy bench`.
"""

import itertools
import sys
import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import onnx_ir as ir

from exporters.onnx import OnnxOptions, export_graph
from exporters.passes.cost import MACHINES
from exporters.passes.live_window import LiveWindow
from exporters.rewrite import rewrite, totals
from exporters.simplify import simplify
from fcn_deploy import Geometry, NetworkSpec, Variant
from fcn_deploy.choices import Target
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.models.weights import random_network
from fcn_deploy.parity.inputs import photo_input
from fcn_deploy.runtime.run_graph import open_graph

HEADINGS = ("network", "multiply-adds", "bytes moved", "nodes", "file", "live-window takes", "max error / range")


def measure(variant: Variant, geometry: Geometry, target: Target) -> tuple[str, ...]:
    """Export, simplify and rewrite one network with random weights and biases, and run both graphs once on a photo.

    Returns the cells of `HEADINGS` after the first. The error is over the range of the plain graph's logits.
    """
    network = random_network(NetworkSpec(variant, geometry), 0)
    plain, _ = simplify(export_graph(network, OnnxOptions()))
    copy = plain.clone()
    start = time.perf_counter()
    LiveWindow(MACHINES[target])(copy)
    pass_s = time.perf_counter() - start
    fast, _ = rewrite(plain, target)
    (expected, plain_bytes), (found, fast_bytes) = _logits(plain), _logits(fast)
    before, after = totals(plain), totals(fast)
    return (
        f"{before.multiply_adds / 1e9:.1f} → {after.multiply_adds / 1e9:.1f} G"
        f" ({after.multiply_adds / before.multiply_adds - 1:+.0%})",
        f"{before.moved_bytes / 1e9:.2f} → {after.moved_bytes / 1e9:.2f} GB",
        f"{before.nodes} → {after.nodes}",
        f"{(fast_bytes - plain_bytes) / 1e6:+.1f} MB",
        f"{pass_s:.1f} s",
        f"{np.abs(expected - found).max() / np.ptp(expected):.1e}",
    )


def _logits(model: ir.Model) -> tuple[npt.NDArray[np.float64], int]:
    """Return the graph's logits of a photo, and the bytes of its file."""
    with open_graph(model) as runner:
        outputs = runner.run({"image": photo_input(SAMPLE_PHOTO, (1, 3, 500, 500)).image})
        return outputs["logits"].astype(np.float64), runner.path.stat().st_size


def main(arguments: Sequence[str]) -> None:
    """Measure every variant in both geometries."""
    target = Target(arguments[0]) if arguments else Target.CPU
    print(f"| {' | '.join(HEADINGS)} |\n|{'---|' * len(HEADINGS)}")
    for geometry, variant in itertools.product(Geometry, Variant):
        cells = measure(variant, geometry, target)
        print(f"| FCN-{variant} {geometry} | {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
