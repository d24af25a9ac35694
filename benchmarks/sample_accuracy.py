"""Held-out accuracy of the sample checkpoint in every precision, with what it costs and saves.

Run as `python -m benchmarks.sample_accuracy [SCENES]`; a minute or two on two cores. Calibrated on scenes of the
training split, judged on held-out ones: other photos, other shapes.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import numpy.typing as npt
from PIL import Image

from benchmarks.train_sample import CLASSES, Scene, Split, scene
from exporters.export import ExportOptions, export
from exporters.onnx import OnnxOptions, default_opset
from exporters.precision.options import PrecisionOptions
from fcn_deploy.assets import SAMPLE_CHECKPOINT
from fcn_deploy.choices import Precision, Variant
from fcn_deploy.metrics import Scores, confusion_matrix
from fcn_deploy.models.weights import WeightsOptions
from fcn_deploy.runtime.base import feed_of, labels_of
from fcn_deploy.runtime.ort import OrtRunner

SIDE = 500
CALIBRATED = 16
# Training drew the seeds below a million times over; scenes of either split are made anew from these.
_FIRST_SEED = 1_000_000

Labels = npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Accuracy:
    """How well one artifact labels held-out scenes.

    Attributes:
        precision: what it computes in.
        mean_iu: with the truth.
        pixel_accuracy: share of pixels labelled right.
        agreement: share of pixels with the label of float32.
        agreement_iu: mean IU with the labels of float32.
        file_bytes: size of model.onnx.
    """

    precision: Precision
    mean_iu: float
    pixel_accuracy: float
    agreement: float
    agreement_iu: float
    file_bytes: int

    def __str__(self) -> str:
        figures = f"{self.mean_iu:.4f} | {self.pixel_accuracy:.2%} | {self.agreement:.3%} | {self.agreement_iu:.4f}"
        return f"| {self.precision} | {figures} | {self.file_bytes / 1e6:.1f} MB |"


def measure(scenes: int) -> list[Accuracy]:
    """The accuracy of the sample in every precision on that many held-out scenes."""
    held_out = [scene(Split.HELD_OUT, _FIRST_SEED + i, SIDE, SIDE) for i in range(scenes)]
    truth = np.stack([made.labels for made in held_out])
    found, exact = [], np.zeros_like(truth)
    with TemporaryDirectory() as folder:
        photos = write_scenes(Path(folder) / "calibration", Split.TRAINING, CALIBRATED)
        for precision in Precision:
            path = _exported(Path(folder) / precision, precision, photos)
            labels = _labels(path, held_out)
            if precision is Precision.FP32:
                exact = labels
            scores, same = _scores(truth, labels), _scores(exact, labels)
            figures = scores.mean_iu, scores.pixel_accuracy, same.pixel_accuracy, same.mean_iu
            found.append(Accuracy(precision, *figures, path.stat().st_size))
    return found


def write_scenes(folder: Path, split: Split, count: int, side: int = SIDE) -> Path:
    """Write that many square scenes into a new folder, as PNG files."""
    folder.mkdir()
    for i in range(count):
        made = scene(split, _FIRST_SEED + i, side, side)
        Image.fromarray(made.pixels).save(folder / f"scene-{i:02}.png")
    return folder


def _exported(output: Path, precision: Precision, photos: Path) -> Path:
    reduction = PrecisionOptions(precision, (photos,) if precision is Precision.INT8 else ())
    onnx = OnnxOptions(SIDE, SIDE, opset=default_opset(precision))
    weights = WeightsOptions(SAMPLE_CHECKPOINT)
    made = export(ExportOptions(Variant.FCN8S, output, weights=weights, onnx=onnx, precision=reduction))
    return made.path / "model.onnx"


def _labels(path: Path, scenes: Sequence[Scene]) -> Labels:
    with OrtRunner(path) as runner:
        spec = runner.inputs[0]
        return np.concatenate([labels_of(runner.run(feed_of(spec, made.pixels[None]))) for made in scenes])


def _scores(truth: Labels, labels: Labels) -> Scores:
    return Scores(confusion_matrix(truth, labels, len(CLASSES)))


if __name__ == "__main__":
    sys.stdout.write(
        "| | mean IU | pixels right | labels as in fp32 | mean IU with fp32 | file |\n|---|---|---|---|---|---|\n"
    )
    for row in measure(int(sys.argv[1]) if len(sys.argv) > 1 else 50):
        sys.stdout.write(f"{row}\n")
