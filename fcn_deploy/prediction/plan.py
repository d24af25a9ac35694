"""What all stages of a run know, and the key by which finished work is recognised."""

import hashlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path

from fcn_deploy.model_info import ModelInfo
from fcn_deploy.prediction.options import PredictOptions
from fcn_deploy.prediction.work import Task
from fcn_deploy.segmentation import Segmenter

# Raised when results of the same photo, model and options come to look different.
_RESULTS_VERSION = 1


@dataclass(frozen=True)
class Plan:
    """A run, as every stage of it has to know it; travels between processes.

    Attributes:
        folder: where relative paths begin, for workers that run elsewhere.
        artifact: what segments.
        options: how.
        info: the model's facts.
        model_sha256: of the model's file.
        batch: N, photos per run of the model.
        height: H of its input.
        width: W of its input.
    """

    folder: Path
    artifact: Path
    options: PredictOptions
    info: ModelInfo
    model_sha256: str
    batch: int
    height: int
    width: int

    def key(self, photo: bytes) -> str:
        """SHA-256 of all that a photo's results depend on, in hex, from the content of its file."""
        content = hashlib.sha256(photo).hexdigest()
        aspect = "padded" if self.options.keep_aspect else "stretched"
        facts = (str(_RESULTS_VERSION), content, self.model_sha256, aspect, self.options.output_format)
        return hashlib.sha256(" ".join(facts).encode()).hexdigest()


def plan_of(artifact: Path, segmenter: Segmenter, options: PredictOptions) -> Plan:
    """The plan of segmenting with an artifact."""
    s = segmenter
    return Plan(Path.cwd(), artifact, options, s.info, s.model_sha256, s.batch, s.height, s.width)


def tasks_of(images: Sequence[Path]) -> list[Task]:
    """A task per distinct image, named by its stem, or `stem-2`, `stem-3`, ... where several share it.

    File systems that ignore case are taken into account.
    """
    distinct = list(dict.fromkeys(images))
    stems = Counter(image.stem.casefold() for image in distinct)
    # The numbers given so far, by stem: a million photos of one name would else be tried a million times each.
    numbers = {stem: count(2) for stem in stems}
    taken: set[str] = set()
    return [Task(image, _free_name(image.stem, stems, numbers, taken)) for image in distinct]


def _free_name(stem: str, stems: Counter[str], numbers: "dict[str, count[int]]", taken: set[str]) -> str:
    own = stem.casefold()
    name = stem
    while name.casefold() in taken or (name.casefold() != own and name.casefold() in stems):
        name = f"{stem}-{next(numbers[own])}"
    taken.add(name.casefold())
    return name
