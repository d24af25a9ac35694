"""Score an artifact on a data set: label every photo, compare with the truth, add the pixel counts up."""

import contextlib
import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fcn_deploy.errors import FcnDeployError
from fcn_deploy.evaluation.data import Dataset, Failure, Files, Pair, read_files
from fcn_deploy.evaluation.journal import Journal
from fcn_deploy.evaluation.options import EvaluateOptions
from fcn_deploy.evaluation.page import PAGE_FILE, Picture, Shown, draw, page_possible, require_page, write_page
from fcn_deploy.evaluation.scores import Confusions, Evaluation, ImageRecord, ImageScore, Source
from fcn_deploy.images import Labels, Pixels
from fcn_deploy.metrics import confusion_matrix
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.base import feed_of, labels_of
from fcn_deploy.segmentation import CancellingThreadPool, Fitted, Segmenter, map_ordered
from fcn_deploy.storage import sole_writer, staged_file

if TYPE_CHECKING:
    from fcn_deploy.runtime.eager import EagerRunner


LabelsOfBoth = tuple[Labels, Labels | None]


class Sides:
    """The artifact and, with `against`, the PyTorch network it was exported from: a context manager around both.

    Args:
        path: the artifact.
        options: provider, fitting, what else labels, and the checkpoint for it.

    Raises:
        BundleError: the artifact is missing, damaged, or has no facts about its classes.
        CheckpointError: the checkpoint is missing where it is needed, or another than the artifact was exported from.
        UsageError: a checkpoint is given for random weights.
        ProviderError: on opening, when the provider asked for would not run.
    """

    def __init__(self, path: Path, options: EvaluateOptions) -> None:
        self.artifact = Segmenter(path, options.provider)
        self.pytorch = _pytorch(self.artifact, options.checkpoint) if options.against is not None else None
        self._keep_aspect = options.keep_aspect

    def __enter__(self) -> Self:
        self.artifact.__enter__()
        if self.pytorch is not None:
            self.pytorch.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.pytorch is not None:
            self.pytorch.__exit__(kind, error, trace)
        self.artifact.__exit__(kind, error, trace)

    @property
    def num_classes(self) -> int:
        """K."""
        return self.artifact.info.network.num_classes

    def fit(self, photo: Pixels) -> Fitted:
        """A photo fitted into the input as the options say."""
        return self.artifact.fit(photo, keep_aspect=self._keep_aspect)

    def label(self, photos: list[Fitted]) -> list[LabelsOfBoth]:
        """The artifact's and PyTorch's labels of 1 to N photos, each h x w uint8 in its photo's own size."""
        outputs = self.artifact.run(self.artifact.feed([fitted.canvas for fitted in photos]))
        maps = self.artifact.labels(outputs)[: len(photos)]
        return [
            (fitted.placement.restore(labels), self._label_with_pytorch(fitted))
            for fitted, labels in zip(photos, maps, strict=True)
        ]

    def _label_with_pytorch(self, fitted: Fitted) -> Labels | None:
        if self.pytorch is None:
            return None
        outputs = self.pytorch.run(feed_of(self.pytorch.inputs[0], fitted.canvas[None]))
        return fitted.placement.restore(labels_of(outputs)[0])


def _pytorch(artifact: Segmenter, checkpoint: Path | None) -> "EagerRunner":
    from fcn_deploy.models.weights import rebuild
    from fcn_deploy.runtime.eager import EagerRunner

    return EagerRunner(rebuild(artifact.info, checkpoint), (1, 3, artifact.height, artifact.width))


RESULT_FILE = "evaluation.json"


def evaluate(
    path: Path, dataset: Dataset, options: EvaluateOptions | None = None, on_step: OnStep = quietly
) -> Evaluation:
    """Score an artifact on a data set, and PyTorch beside it if asked for; writes result, journal and page.

    Every photo is labelled in its own size. What an interrupted run had finished is taken over if artifact, runtime,
    fitting, photo and labels are still the same. Memory does not grow with the photos, only by a few numbers of each.
    Images that cannot be read are left out, and returned: see `Evaluation.require`.

    Args:
        path: a bundle's directory, an ONNX file of this toolkit, or a TensorRT engine.
        dataset: what `find_dataset` or `sample_dataset` gave.
        options: how, and where the results go.
        on_step: told what is being done.

    Raises:
        BundleError: the artifact is missing, damaged, or has no facts about its classes.
        CheckpointError: the checkpoint is missing where it is needed, or another than the artifact was exported from.
        ProviderError: the provider asked for would not run.
        UsageError: a page is asked for and what makes it is not installed, or a checkpoint for random weights.
        OutputError: the output is held by another run, is no folder of an evaluation, or cannot be written.
    """
    options = options or EvaluateOptions()
    if options.page:
        require_page()
    with on_step(f"open {path}{' and rebuild its network' if options.against else ''}"):
        sides = Sides(path, options)
    with sides, sole_writer(options.output):
        chosen = dataset.first(options.limit)
        source = _source(path, sides, dataset, options)
        with Journal(options.output, source.conditions, sides.num_classes) as journal:
            if journal.anew:
                with on_step(f"begin anew: the journal in {options.output} is of {journal.anew}"):
                    pass
            tally = _score(sides, journal, chosen.pairs, on_step)
        result = tally.result(sides, source, chosen.pairs, journal)
        _write(result, options.output / RESULT_FILE)
        _write_page(result, sides, chosen.pairs, options, on_step)
    return result


@dataclass
class _Tally:
    """What has been added up so far."""

    counts: Confusions
    pixels: int = 0
    images: dict[str, ImageScore] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)

    def add(self, outcome: ImageRecord | Failure) -> None:
        if isinstance(outcome, Failure):
            self.failures[outcome.name] = outcome
            return
        self.counts += outcome.confusions
        self.pixels += outcome.pixels
        self.images[outcome.name] = ImageScore.of(outcome)

    def result(self, sides: Sides, source: Source, pairs: tuple[Pair, ...], journal: Journal) -> Evaluation:
        images = tuple(self.images[pair.name] for pair in pairs if pair.name in self.images)
        failures = tuple(self.failures[pair.name] for pair in pairs if pair.name in self.failures)
        resumed = len(images) - journal.added
        return Evaluation(
            sides.artifact.info, source, self.counts, self.pixels, images, failures, resumed, journal.anew
        )


@dataclass(frozen=True)
class _Ready:
    """A photo to be labelled, and its truth."""

    files: Files
    fitted: Fitted
    truth: Labels


def _source(path: Path, sides: Sides, dataset: Dataset, options: EvaluateOptions) -> Source:
    pytorch = sides.pytorch.name if sides.pytorch is not None else None
    fitting = "padded" if options.keep_aspect else "stretched"
    return Source(path, sides.artifact.model_sha256, sides.artifact.runner_name, pytorch, dataset.name, fitting)


def _score(sides: Sides, journal: Journal, pairs: tuple[Pair, ...], on_step: OnStep) -> _Tally:
    tally = _Tally(Confusions.none(sides.num_classes, pytorch=sides.pytorch is not None))
    batch = sides.artifact.batch
    with contextlib.ExitStack() as stack:
        advance = stack.enter_context(on_step(f"label and score, images: {len(pairs)}", len(pairs)))
        # Photos and truths are read while the runtime is busy: the next batch is ready, and one more photo made.
        reader = stack.enter_context(CancellingThreadPool(1))
        loaded = map_ordered(reader, partial(_load, sides, journal), pairs, batch + 1)
        for outcome in _outcomes(sides, journal, loaded):
            tally.add(outcome)
            advance()
    return tally


def _load(sides: Sides, journal: Journal, pair: Pair) -> _Ready | ImageRecord | Failure:
    """What an earlier run found for a pair; or its photo, ready to be labelled; or why neither."""
    try:
        files = read_files(pair)
        finished = journal.find(pair.name, *files.sha256)
        if finished is not None:
            return finished
        photo, truth = files.decode(sides.num_classes)
        return _Ready(files, sides.fit(photo), truth)
    except FcnDeployError as error:
        return Failure(pair.name, error)


def _outcomes(
    sides: Sides, journal: Journal, loaded: Iterable[_Ready | ImageRecord | Failure]
) -> Iterator[ImageRecord | Failure]:
    """What has no need of the runtime at once, the rest when there is a batch of it."""
    waiting: list[_Ready] = []
    for item in loaded:
        if not isinstance(item, _Ready):
            yield item
            continue
        waiting.append(item)
        if len(waiting) == sides.artifact.batch:
            yield from _measured(sides, journal, waiting)
            waiting = []
    if waiting:
        yield from _measured(sides, journal, waiting)


def _measured(sides: Sides, journal: Journal, photos: list[_Ready]) -> Iterator[ImageRecord]:
    labelled = sides.label([item.fitted for item in photos])
    for item, labels in zip(photos, labelled, strict=True):
        confusions = _confusions(item.truth, labels, sides.num_classes)
        record = ImageRecord(item.files.pair.name, *item.files.sha256, item.truth.size, confusions)
        journal.add(record)
        yield record


def _confusions(truth: Labels, labels: LabelsOfBoth, num_classes: int) -> Confusions:
    artifact, pytorch = labels
    own = confusion_matrix(truth, artifact, num_classes)
    if pytorch is None:
        return Confusions(own)
    return Confusions(
        own, confusion_matrix(truth, pytorch, num_classes), confusion_matrix(pytorch, artifact, num_classes)
    )


def _write(result: Evaluation, path: Path) -> None:
    with staged_file(path) as staging:
        staging.write_text(json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")


def _write_page(
    result: Evaluation, sides: Sides, pairs: tuple[Pair, ...], options: EvaluateOptions, on_step: OnStep
) -> None:
    """The worst images are labelled once more: their pictures are too large to keep for all."""
    path = options.output / PAGE_FILE
    if not (page_possible() if options.page is None else options.page):
        # One of an earlier run would tell other figures.
        path.unlink(missing_ok=True)
        return
    by_name, pictures = {pair.name: pair for pair in pairs}, []
    worst = result.worst(options.worst)
    with on_step(f"draw the worst images: {len(worst)}", len(worst)) as advance:
        for score in worst:
            pictures.append(_picture(sides, by_name[score.name], score))
            advance()
    write_page(result, pictures, path)


def _picture(sides: Sides, pair: Pair, score: ImageScore) -> Picture:
    photo, truth = read_files(pair).decode(sides.num_classes)
    (labels,) = sides.label([sides.fit(photo)])
    counts = _confusions(truth, labels, sides.num_classes)
    return draw(Shown(photo, truth, *labels), score, counts, sides.artifact.info)
