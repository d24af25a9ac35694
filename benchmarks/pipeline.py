"""What `predict` adds to the runtime: how busy it keeps it, whether memory grows, and Ray beside threads.

Run as `python -m benchmarks.pipeline [PHOTOS] [MANY]`: so many 500x500 JPEGs at full width, through threads and Ray in
turn, and so many through the narrow sample; about ten minutes on two cores with the defaults.
"""

import sys
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from PIL import Image

from exporters.export_options import ExportOptions
from exporters.pipeline import export
from fcn_deploy.geometry import Variant
from fcn_deploy.images import SAMPLE_PHOTO, read_image, resize
from fcn_deploy.models.weights import WeightsOptions
from fcn_deploy.prediction.options import EngineName, PredictOptions
from fcn_deploy.prediction.run import predict
from fcn_deploy.prediction.work import Prediction
from fcn_deploy.samples import SAMPLE_CHECKPOINT

PHOTOS, MANY, ROUNDS = 60, 2000, 3
# Memory is compared from here on: by then every thread has its buffers.
_SETTLED = 200


@dataclass(frozen=True)
class Course:
    """One run of `predict`.

    Attributes:
        stamps: when each photo was done, in seconds from the start.
        inference_s: time the runtime took for each.
        resident_bytes: of this process, at each.
    """

    stamps: tuple[float, ...]
    inference_s: tuple[float, ...]
    resident_bytes: tuple[int, ...]

    @property
    def busy(self) -> float:
        """Share of the time in which the runtime ran, between the first photo and the last."""
        return sum(self.inference_s[1:]) / (self.stamps[-1] - self.stamps[0])

    @property
    def images_per_s(self) -> float:
        """Between the first photo and the last: what starts before is paid once."""
        return (len(self.stamps) - 1) / (self.stamps[-1] - self.stamps[0])

    @property
    def growth(self) -> float:
        """By how much the most memory of the run's last fifth is above that of the photos around the 200th."""
        settled = max(self.resident_bytes[_SETTLED - 100 : _SETTLED])
        return max(self.resident_bytes[-len(self.resident_bytes) // 5 :]) / settled - 1


def write_photos(folder: Path, count: int) -> list[Path]:
    """JPEGs of 500x500, all different."""
    folder.mkdir()
    pixels = resize(read_image(SAMPLE_PHOTO), 500, 500)
    paths = [folder / f"{i:05d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(np.roll(pixels, (7 * i, i), axis=(0, 1))).save(path, quality=90)
    return paths


def run(artifact: Path, photos: list[Path], output: Path, engine: EngineName) -> Course:
    """Segment all photos into a new folder."""
    start = time.perf_counter()
    found = list(_observed(predict(artifact, photos, PredictOptions(output, engine=engine)), start))
    return Course(*(tuple(column) for column in zip(*found, strict=True)))


def _observed(predictions: Iterable[Prediction], start: float) -> Iterator[tuple[float, float, int]]:
    process = psutil.Process()
    for prediction in predictions:
        yield time.perf_counter() - start, (prediction.inference_ms or 0) / 1e3, process.memory_info().rss


def at_full_width(folder: Path, count: int) -> Iterator[str]:
    """Rows of a table: threads and Ray in turn."""
    artifact = export(ExportOptions(Variant.FCN8S, folder / "full", verify=False)).path
    photos = write_photos(folder / "photos", count)
    courses: dict[EngineName, list[Course]] = {engine: [] for engine in EngineName}
    for turn in range(ROUNDS):
        for engine, found in courses.items():
            found.append(run(artifact, photos, folder / f"{engine}-{turn}", engine))
    for engine, found in courses.items():
        rate, busy = median(c.images_per_s for c in found), median(c.busy for c in found)
        began, ended = median(c.stamps[0] for c in found), median(c.stamps[-1] for c in found)
        yield f"| {engine} | {rate:.3f} | {busy:.1%} | {began:.1f} s | {ended:.1f} s |"
    pairs = zip(courses[EngineName.RAY], courses[EngineName.LOCAL], strict=True)
    ratios = sorted(ray.images_per_s / local.images_per_s for ray, local in pairs)
    yield f"\nRay's throughput over that of threads, by round: {', '.join(f'{ratio:.3f}' for ratio in ratios)}"


def through_many(folder: Path, count: int) -> str:
    """A sentence about memory."""
    weights = WeightsOptions(SAMPLE_CHECKPOINT)
    artifact = export(ExportOptions(Variant.FCN8S, folder / "narrow", weights=weights, verify=False)).path
    course = run(artifact, write_photos(folder / "many", count), folder / "out", EngineName.LOCAL)
    peak = max(course.resident_bytes) / 1e6
    return (
        f"{count} photos through the narrow sample: {course.images_per_s:.1f} a second, peak {peak:.0f} MB, "
        f"growth from photo {_SETTLED} on {course.growth:.1%}"
    )


if __name__ == "__main__":
    numbers = [int(argument) for argument in sys.argv[1:]] or [PHOTOS, MANY]
    with TemporaryDirectory() as place:
        sys.stdout.write(
            "| engine | images/s | runtime busy | first photo after | all after |\n|---|---|---|---|---|\n"
        )
        for line in at_full_width(Path(place), numbers[0]):
            sys.stdout.write(f"{line}\n")
        sys.stdout.flush()
        sys.stdout.write(f"\n{through_many(Path(place), numbers[1])}\n")
