"""Measure reduced precision: accuracy of the trained sample, and size and time of int8 on a CPU.

Run as `python -m benchmarks.precision_gain [SCENES] [ROUNDS]`; prints two Markdown tables, about eight minutes on two
cores. The sample is calibrated on scenes of the training split and judged on held-out ones: other photos, other shapes.
Times are those of networks at full width with random weights, which take as long as trained ones, at 500x500, with the
float32 graph and the int8 graph in turn. Half precision is not timed: a CPU computes it in float32 (docs/precision.md).
"""

import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from statistics import quantiles
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt

from benchmarks.train_sample import CLASSES, FIRST_SEED, WRITTEN_SIDE, Scene, Split, scene, write_scenes
from exporters.export import ExportOptions, export
from exporters.onnx import OnnxOptions, default_opset
from exporters.precision.options import PrecisionOptions
from fcn_deploy.assets import SAMPLE_CHECKPOINT
from fcn_deploy.choices import Precision, Target, Variant
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.metrics import Scores, confusion_matrix
from fcn_deploy.models.weights import WeightsOptions
from fcn_deploy.parity.inputs import photo_input
from fcn_deploy.preprocessing import Preprocessing
from fcn_deploy.runtime.base import Bound, feed_of, labels_of
from fcn_deploy.runtime.ort import OrtRunner

SCENES, ROUNDS, CALIBRATED = 50, 15, 16
ACCURACY = "| | mean IU | pixels right | labels as in fp32 | mean IU with fp32 | file |\n|---|---|---|---|---|---|"
SPEED = "| | bundle, fp32 → int8 | times as fast (quartiles) | export with 16 images |\n|---|---|---|---|"

Labels = npt.NDArray[np.uint8]


def accuracies(scenes: int) -> Iterator[str]:
    """Measure the sample in every precision on that many held-out scenes; yield the rows of the first table."""
    held_out = [scene(Split.HELD_OUT, FIRST_SEED + i, WRITTEN_SIDE, WRITTEN_SIDE) for i in range(scenes)]
    truth = np.stack([made.labels for made in held_out])
    exact = np.zeros_like(truth)
    with TemporaryDirectory() as folder:
        photos = write_scenes(Path(folder) / "calibration", Split.TRAINING, CALIBRATED)
        for precision in Precision:
            path = _exported_sample(Path(folder) / precision, precision, photos)
            labels = _labels(path, held_out)
            if precision is Precision.FP32:
                exact = labels
            right, same = (Scores(confusion_matrix(reference, labels, len(CLASSES))) for reference in (truth, exact))
            figures = (
                f"{right.mean_iu:.4f} | {right.pixel_accuracy:.2%} | {same.pixel_accuracy:.3%} | {same.mean_iu:.4f}"
            )
            yield f"| {precision} | {figures} | {path.stat().st_size / 1e6:.1f} MB |"


def _exported_sample(output: Path, precision: Precision, photos: Path) -> Path:
    onnx = OnnxOptions(WRITTEN_SIDE, WRITTEN_SIDE, opset=default_opset(precision))
    weights, reduction = WeightsOptions(SAMPLE_CHECKPOINT), _reduction(precision, photos)
    made = export(ExportOptions(Variant.FCN8S, output, weights=weights, onnx=onnx, precision=reduction))
    return made.path / "model.onnx"


def _reduction(precision: Precision, photos: Path) -> PrecisionOptions:
    return PrecisionOptions(precision, (photos,) if precision is Precision.INT8 else ())


def _labels(path: Path, scenes: Sequence[Scene]) -> Labels:
    with OrtRunner(path) as runner:
        spec = runner.inputs[0]
        return np.concatenate(
            [labels_of(runner.run(feed_of(spec, made.pixels[None], Preprocessing()))) for made in scenes]
        )


def speed(variant: Variant, rounds: int) -> str:
    """Return a row of the second table: the variant, sizes, and how many times as fast 8 bits are."""
    with TemporaryDirectory() as folder:
        photos = write_scenes(Path(folder) / "calibration", Split.TRAINING, CALIBRATED)
        paths, export_s = {}, 0.0
        for precision in (Precision.FP32, Precision.INT8):
            reduction, output = _reduction(precision, photos), Path(folder) / precision
            start = time.perf_counter()
            made = export(ExportOptions(variant, output, target=Target.CPU, precision=reduction, verify=False))
            export_s = time.perf_counter() - start
            paths[precision] = made.path
        taken = _interleaved({precision: path / "model.onnx" for precision, path in paths.items()}, rounds)
        sizes = [sum(f.stat().st_size for f in path.rglob("*") if f.is_file()) / 1e6 for path in paths.values()]
    first, median, third = quantiles(slow / fast for slow, fast in zip(*taken.values(), strict=True))
    figures = f"{sizes[0]:.0f} → {sizes[1]:.1f} MB | {median:.2f} ({first:.2f}..{third:.2f})"
    return f"| FCN-{variant} | {figures} | {export_s:.0f} s |"


def _interleaved(paths: Mapping[Precision, Path], rounds: int) -> dict[Precision, list[float]]:
    """Return the seconds of `rounds` runs of each file, in turn, after two warm-up runs."""
    photo = photo_input(SAMPLE_PHOTO, (1, 3, 500, 500))
    taken: dict[Precision, list[float]] = {precision: [] for precision in paths}
    with ExitStack() as stack:
        bound: dict[Precision, Bound] = {}
        for precision, path in paths.items():
            runner = stack.enter_context(OrtRunner(path))
            bound[precision] = runner.bind()
            bound[precision].upload({runner.inputs[0].name: photo.feed(runner.inputs[0])})
        for turn in range(rounds + 2):
            for precision, one in bound.items():
                start = time.perf_counter()
                one.run()
                if turn >= 2:
                    taken[precision].append(time.perf_counter() - start)
    return taken


def main(arguments: Sequence[str]) -> None:
    """Print both tables, row by row."""
    scenes, rounds = [*map(int, arguments), *(SCENES, ROUNDS)[len(arguments) :]]
    print(ACCURACY)
    for row in accuracies(scenes):
        print(row, flush=True)
    print(f"\n{SPEED}")
    for variant in Variant:
        print(speed(variant, rounds), flush=True)


if __name__ == "__main__":
    main(sys.argv[1:])
