"""Measure the pipeline of `predict`: utilisation of the runtime, growth of memory, and Ray against threads.

Run as `python -m benchmarks.pipeline [PHOTOS] [MANY]`: PHOTOS JPEGs of 500x500 at full width, through threads and Ray
in turn, and MANY through the narrow sample; about ten minutes on two cores with the defaults.
"""

import sys
import time
from collections import defaultdict, deque
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
import psutil
from PIL import Image

from exporters.export import ExportOptions, export
from fcn_deploy.assets import SAMPLE_CHECKPOINT
from fcn_deploy.choices import EngineName, Variant
from fcn_deploy.images import SAMPLE_PHOTO, read_image, resize
from fcn_deploy.models.weights import WeightsOptions
from fcn_deploy.prediction.options import PredictOptions, make_plan, make_tasks
from fcn_deploy.prediction.run import predict, predict_locally
from fcn_deploy.prediction.sinks import FileSink
from fcn_deploy.prediction.store import open_store
from fcn_deploy.runtime.base import Arrays
from fcn_deploy.segmentation import Segmenter

PHOTOS, MANY, ROUNDS = 40, 2000, 3
# The start-up takes as long with this few photos.
_FEW = 4
# Memory is compared from this photo on, when every thread has its buffers.
_SETTLED = 200


class WatchedSegmenter(Segmenter):
    """Records when its runtime ran: pairs of begin and end, in seconds."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        self.runs: list[tuple[float, float]] = []

    def run(self, feed: Arrays) -> Arrays:
        """Run, and record the times."""
        begin = time.perf_counter()
        outputs = super().run(feed)
        self.runs.append((begin, time.perf_counter()))
        return outputs

    @property
    def busy(self) -> float:
        """Share of the time between the first run's begin and the last one's end in which the runtime ran."""
        return sum(end - begin for begin, end in self.runs) / (self.runs[-1][1] - self.runs[0][0])


def write_photos(folder: Path, count: int) -> list[Path]:
    """Write different JPEGs of 500x500."""
    folder.mkdir()
    pixels = resize(read_image(SAMPLE_PHOTO), 500, 500)
    paths = [folder / f"{i:05d}.jpg" for i in range(count)]
    for i, path in enumerate(paths):
        Image.fromarray(np.roll(pixels, (7 * i, i), axis=(0, 1))).save(path, quality=90)
    return paths


def busy_share(artifact: Path, photos: list[Path], output: Path) -> float:
    """Return the share of the time in which the pipeline of one process keeps the runtime busy."""
    segmenter = WatchedSegmenter(artifact)
    plan = make_plan(artifact, segmenter, PredictOptions(output))
    sink = FileSink(plan, open_store(output))
    deque(predict_locally(plan, make_tasks(photos), sink, segmenter), maxlen=0)
    return segmenter.busy


def seconds(artifact: Path, photos: list[Path], engine: EngineName) -> float:
    """Return the seconds of a whole `predict` into a new folder."""
    with TemporaryDirectory() as output:
        start = time.perf_counter()
        deque(predict(artifact, photos, PredictOptions(output, engine=engine)), maxlen=0)
        return time.perf_counter() - start


def at_full_width(folder: Path, count: int) -> Iterator[str]:
    """Yield sentences about the runtime's share, and the rates of threads and Ray in turn."""
    artifact = export(ExportOptions(Variant.FCN8S, folder / "full", verify=False)).path
    photos = write_photos(folder / "photos", count)
    shares = sorted(busy_share(artifact, photos, folder / f"busy-{turn}") for turn in range(ROUNDS))
    yield f"runtime busy, {count} photos, by round: {', '.join(f'{share:.1%}' for share in shares)}"
    rates, starts = defaultdict[EngineName, list[float]](list), defaultdict[EngineName, list[float]](list)
    for engine in ROUNDS * list(EngineName):
        few, all_of_them = (seconds(artifact, given, engine) for given in (photos[:_FEW], photos))
        rates[engine].append((count - _FEW) / (all_of_them - few))
        starts[engine].append(few - _FEW / rates[engine][-1])
    for engine in EngineName:
        yield f"{engine}: {median(rates[engine]):.3f} photos a second, {median(starts[engine]):.1f} s before the first"
    ratios = sorted(ray / local for ray, local in zip(rates[EngineName.RAY], rates[EngineName.LOCAL], strict=True))
    yield f"Ray's rate over that of threads, by round: {', '.join(f'{ratio:.3f}' for ratio in ratios)}"


def through_many(folder: Path, count: int) -> str:
    """Return a sentence about memory: the growth of its peak from the 200th photo to the last fifth."""
    weights = WeightsOptions(SAMPLE_CHECKPOINT)
    artifact = export(ExportOptions(Variant.FCN8S, folder / "narrow", weights=weights, verify=False)).path
    photos = write_photos(folder / "many", count)
    process, start = psutil.Process(), time.perf_counter()
    resident = [process.memory_info().rss for _ in predict(artifact, photos, PredictOptions(folder / "out"))]
    rate = count / (time.perf_counter() - start)
    settled, late = max(resident[_SETTLED - 100 : _SETTLED]), max(resident[-count // 5 :])
    return (
        f"{count} photos through the narrow sample: {rate:.1f} a second, peak {max(resident) / 1e6:.0f} MB, "
        f"growth from photo {_SETTLED} on {late / settled - 1:+.1%}"
    )


if __name__ == "__main__":
    given = [int(argument) for argument in sys.argv[1:]]
    photos, many = given + [PHOTOS, MANY][len(given) :]
    with TemporaryDirectory() as place:
        for line in at_full_width(Path(place), photos):
            print(line, flush=True)
        print(through_many(Path(place), many))
