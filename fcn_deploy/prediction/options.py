"""Options of a prediction run, the plan that all its stages share, and its outcome for each photo."""

import hashlib
import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from fcn_deploy.choices import MAX_MEGAPIXELS, EngineName, OutputFormat, Provider
from fcn_deploy.errors import FcnDeployError, UsageError, check_range
from fcn_deploy.images import LABELS_SUFFIX, OVERLAY_SUFFIX
from fcn_deploy.installation import require_extra
from fcn_deploy.model_info import ModelInfo
from fcn_deploy.segmentation import PendingPhoto, Segmenter


@dataclass(frozen=True)
class PredictOptions:
    """How photos are segmented, and where the results go.

    Attributes:
        output: directory of the results, created if needed; or an address for fsspec, such as `s3://bucket/labels`.
        keep_aspect: pad the photo to the input's shape with the mean colour instead of stretching it.
        provider: where ONNX Runtime runs.
        output_format: what is written for each photo.
        engine: what runs the stages.
        address: address of the Ray cluster; None starts one on this machine for the duration of the run.
        max_photo_mpx: largest photo, in millions of pixels; larger ones are failures.
        force: replace files under the names of results that `predict` did not write.
        use_cache: open a large model from its prepared session on a CPU, which the first run on a machine writes.

    Raises:
        UsageError: a value out of its bounds, an address without the Ray engine, or a package that is not installed.
    """

    output: Path | str = Path("predictions")
    keep_aspect: bool = False
    provider: Provider = Provider.CPU
    output_format: OutputFormat = OutputFormat.PNG
    engine: EngineName = EngineName.LOCAL
    address: str | None = None
    max_photo_mpx: int = MAX_MEGAPIXELS
    force: bool = False
    use_cache: bool = True

    def __post_init__(self) -> None:
        check_range("photo size in Mpx", self.max_photo_mpx, 1, MAX_MEGAPIXELS, option="--max-photo-mpx")
        if self.address is not None and self.engine is not EngineName.RAY:
            raise UsageError(
                f"address {self.address} is for a Ray cluster, but the engine is {self.engine}",
                remedy="Pass --engine ray, or omit --address.",
            )
        if self.engine is EngineName.RAY:
            require_extra("--engine ray", "ray", ["ray"])
        if self.output_format is OutputFormat.PARQUET:
            require_extra("--output-format parquet", "parquet", ["pyarrow"])


@dataclass(frozen=True)
class Task:
    """A photo to segment."""

    image: Path  # the photo's file
    name: str  # name of its results, without a suffix


@dataclass(frozen=True)
class Decoded(PendingPhoto):
    """A photo that is ready for the model."""

    task: Task  # the photo
    key: str  # hash of everything its results depend on: content, model and options


@dataclass(frozen=True)
class Prediction:
    """One segmented photo, or the reason why it was not segmented.

    Attributes:
        image: the photo.
        files: paths or addresses of its results; empty after a failure.
        shares: each class found with its share of the pixels, largest first; empty when the results existed before.
        failure: what went wrong, or None.
        untrained: whether the model's weights are random, so that the labels mean nothing.
        done_before: whether results of the same photo, model and options existed before the run.
        inference_ms: time the runtime took for its batch, divided by the photos in that batch; None when it did not
            run.
    """

    image: Path
    files: tuple[str, ...] = ()
    shares: tuple[tuple[str, float], ...] = ()
    failure: FcnDeployError | None = None
    untrained: bool = False
    done_before: bool = False
    inference_ms: float | None = None

    @property
    def labels_path(self) -> Path | None:
        """The palette PNG of the labels, in the photo's size; None in another format or after a failure."""
        return self._file(LABELS_SUFFIX)

    @property
    def overlay_path(self) -> Path | None:
        """The labels over the photo, with a legend; None in another format or after a failure."""
        return self._file(OVERLAY_SUFFIX)

    def to_dict(self) -> dict[str, Any]:
        """Return every fact, for JSON."""
        return {
            "image": str(self.image),
            "files": list(self.files),
            "classes": dict(self.shares),
            "untrained": self.untrained,
            "done_before": self.done_before,
            "inference_ms": self.inference_ms,
            "failure": str(self.failure) if self.failure else None,
        }

    def _file(self, suffix: str) -> Path | None:
        return next((Path(file) for file in self.files if file.endswith(suffix)), None)


# Increased when results of the same photo, model and options change.
_RESULTS_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """The facts that every stage of a run needs; can be pickled."""

    folder: Path  # base of relative paths, for workers that run elsewhere
    artifact: Path  # path of the artifact
    options: PredictOptions  # the options of the run
    info: ModelInfo  # the model's facts
    model_sha256: str  # hash of the model's file
    batch: int  # N, photos per run of the model
    height: int  # H of its input
    width: int  # W of its input

    def key(self, photo: bytes) -> str:
        """Return the SHA-256, in hex, of everything the results of a photo with this content depend on."""
        content = hashlib.sha256(photo).hexdigest()
        aspect = "padded" if self.options.keep_aspect else "stretched"
        facts = (str(_RESULTS_VERSION), content, self.model_sha256, aspect, self.options.output_format)
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()


def make_plan(artifact: Path, segmenter: Segmenter, options: PredictOptions) -> Plan:
    """Return the plan of a run with an artifact."""
    s = segmenter
    return Plan(Path.cwd(), artifact, options, s.info, s.model_sha256, s.batch, s.height, s.width)


# File systems take names of 255 bytes; suffixes such as `.overlay.png` and `-2` have to fit too.
_MAX_NAME_BYTES = 200


def make_tasks(images: Sequence[Path]) -> list[Task]:
    """Return a task for each distinct image, named by its stem, or `stem-2`, `stem-3`, ... where several share it.

    Names also differ on file systems that ignore case. Stems that are too long, or not UTF-8, are shortened and get a
    hash.
    """
    distinct = {image: _safe_stem(image.stem) for image in images}
    stems = Counter(stem.casefold() for stem in distinct.values())
    # A counter per stem keeps this linear for many photos with the same name.
    numbers = {stem: count(2) for stem in stems}
    taken: set[str] = set()
    return [Task(image, _free_name(stem, stems, numbers, taken)) for image, stem in distinct.items()]


def _safe_stem(stem: str) -> str:
    raw = os.fsencode(stem)
    text = raw.decode(errors="replace")
    if text == stem and len(raw) <= _MAX_NAME_BYTES:
        return stem
    digest = hashlib.sha256(raw).hexdigest()[:16]
    return f"{text.encode()[: _MAX_NAME_BYTES - len(digest) - 1].decode(errors='ignore')}-{digest}"


def _free_name(stem: str, stems: Counter[str], numbers: "dict[str, count[int]]", taken: set[str]) -> str:
    own = stem.casefold()
    name = stem
    while name.casefold() in taken or (name.casefold() != own and name.casefold() in stems):
        name = f"{stem}-{next(numbers[own])}"
    taken.add(name.casefold())
    return name
