"""What 8 bits gain on a CPU at 500x500 and full width: size, and time against the float32 graph in turn.

Run as `python -m benchmarks.precision_gain [ROUNDS]`; about six minutes on two cores. Random weights, whose arithmetic
takes as long as that of trained ones. Half precision is not timed: a CPU computes it in float32 (docs/precision.md).
"""

import sys
import time
from collections.abc import Mapping
from contextlib import ExitStack
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.sample_accuracy import CALIBRATED, write_scenes
from benchmarks.train_sample import Split
from exporters.export import ExportOptions, export
from exporters.precision.options import PrecisionOptions
from fcn_deploy.choices import Precision, Target, Variant
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.parity.inputs import photo_input
from fcn_deploy.runtime.base import Bound
from fcn_deploy.runtime.ort import OrtRunner

ROUNDS = 15
_SHAPE = (1, 3, 500, 500)


def measure(variant: Variant, rounds: int) -> str:
    """A row of the table: the variant, sizes, and how many times faster 8 bits are."""
    with TemporaryDirectory() as folder:
        photos = write_scenes(Path(folder) / "calibration", Split.TRAINING, CALIBRATED)
        paths, seconds = {}, 0.0
        for precision in (Precision.FP32, Precision.INT8):
            reduction = PrecisionOptions(precision, (photos,) if precision is Precision.INT8 else ())
            start = time.perf_counter()
            made = export(
                ExportOptions(variant, Path(folder) / precision, target=Target.CPU, precision=reduction, verify=False)
            )
            seconds = time.perf_counter() - start
            paths[precision] = made.path
        taken = _interleaved({precision: path / "model.onnx" for precision, path in paths.items()}, rounds)
        ratios = sorted(slow / fast for slow, fast in zip(*taken.values(), strict=True))
        sizes = [sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6 for path in paths.values()]
    quartiles = f"{ratios[len(ratios) // 4]:.2f}..{ratios[-1 - len(ratios) // 4]:.2f}"
    figures = f"{sizes[0]:.0f} → {sizes[1]:.1f} MB | {median(ratios):.2f} ({quartiles})"
    return f"| FCN-{variant} | {figures} | {seconds:.0f} s |"


def _interleaved(paths: Mapping[Precision, Path], rounds: int) -> dict[Precision, list[float]]:
    """Seconds of `rounds` runs of each file, in turn, after two that do not count."""
    given = photo_input(SAMPLE_PHOTO, _SHAPE)
    taken: dict[Precision, list[float]] = {precision: [] for precision in paths}
    with ExitStack() as stack:
        bound: dict[Precision, Bound] = {}
        for precision, path in paths.items():
            runner = stack.enter_context(OrtRunner(path))
            bound[precision] = runner.bind()
            bound[precision].upload({runner.inputs[0].name: given.feed(runner.inputs[0])})
        for turn in range(rounds + 2):
            for precision, one in bound.items():
                start = time.perf_counter()
                one.run()
                if turn >= 2:
                    taken[precision].append(time.perf_counter() - start)
    return taken


if __name__ == "__main__":
    sys.stdout.write(
        "| | bundle, fp32 → int8 | times as fast (quartiles) | export with 16 images |\n|---|---|---|---|\n"
    )
    for one in Variant:
        sys.stdout.write(measure(one, int(sys.argv[1]) if len(sys.argv) > 1 else ROUNDS) + "\n")
        sys.stdout.flush()
