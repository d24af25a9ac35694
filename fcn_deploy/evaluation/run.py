"""Score an artifact on a data set: label every photo, compare with the truth, add up the pixel counts."""

import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from fcn_deploy.artifact.bundle import RebuildOptions
from fcn_deploy.choices import Provider
from fcn_deploy.errors import FcnDeployError, UsageError, check_range
from fcn_deploy.evaluation.data import Dataset, Failure, Files, Pair, read_files
from fcn_deploy.evaluation.journal import Journal
from fcn_deploy.evaluation.page import PAGE_FILE, Picture, draw, write_page
from fcn_deploy.evaluation.scores import Confusions, Evaluation, ImageRecord, ImageScore, Source
from fcn_deploy.images import Labels, Pixels
from fcn_deploy.metrics import confusion_matrix
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.base import feed_of, labels_of
from fcn_deploy.segmentation import (
    Batch,
    CancellingThreadPool,
    Fitted,
    Labelled,
    PendingPhoto,
    Segmenter,
    label_batch,
    make_batches,
    map_ordered,
    run_batch,
)
from fcn_deploy.storage import sole_writer, staged_file

if TYPE_CHECKING:
    from fcn_deploy.runtime.eager import EagerRunner

MAX_WORST = 100
RESULT_FILE = "evaluation.json"


@dataclass(frozen=True)
class EvaluateOptions:
    """How an artifact is scored, and where the results go.

    Attributes:
        output: directory of `evaluation.json`, the journal and the page, created if needed.
        keep_aspect: pad photos to the input's shape with the mean colour instead of stretching them.
        provider: where ONNX Runtime runs the artifact.
        against: `pytorch` also labels the photos with the network the artifact was exported from, in float32 on the
            CPU, to measure the accuracy lost in deployment; None scores the artifact alone.
        checkpoint: the checkpoint the artifact was exported from; required with `against` if there was one.
        worst: how many of the worst images the page shows, 0 to 100.
        limit: score only the first `limit` images; None scores all.
        page: whether to write the page.
        use_cache: open a large model from its prepared session on a CPU, which the first run on a machine writes.
        module: the user's own network it was exported from, whose code is run; required with `against` if there was
            one.
        module_changed: accept that the module's file has changed since; the result says so.

    Raises:
        UsageError: a value out of its bounds, or a checkpoint or module without `against`.
    """

    output: Path = Path("evaluation")
    keep_aspect: bool = False
    provider: Provider = Provider.CPU
    against: Literal["pytorch"] | None = None
    checkpoint: Path | None = None
    worst: int = 8
    limit: int | None = None
    page: bool = True
    use_cache: bool = True
    module: str | None = None
    module_changed: bool = False

    def __post_init__(self) -> None:
        given = {"checkpoint": self.checkpoint, "module": self.module, "module-changed": self.module_changed or None}
        for name in (name for name, value in given.items() if value is not None and self.against is None):
            raise UsageError(
                f"{name} {given[name]} is used only for a comparison with PyTorch",
                remedy=f"Add --against pytorch, or omit --{name}.",
            )
        check_range("number of worst images", self.worst, 0, MAX_WORST, option="--worst")
        if self.limit is not None:
            check_range("limit", self.limit, 1, option="--limit")


@dataclass(frozen=True)
class LabelSources:
    """The artifact and, when PyTorch is compared, the network it was exported from."""

    artifact: Segmenter  # the artifact
    pytorch: "EagerRunner | None"  # the network; None when the artifact is scored alone
    keep_aspect: bool  # whether photos are padded instead of stretched

    @property
    def num_classes(self) -> int:
        """Number of labels."""
        return self.artifact.info.num_labels

    def fit(self, photo: Pixels) -> Fitted:
        """Return a photo fitted into the input, stretched or padded as chosen."""
        return self.artifact.fit(photo, keep_aspect=self.keep_aspect)

    def label_with_pytorch(self, fitted: Fitted) -> Labels | None:
        """Return PyTorch's h x w uint8 labels of a photo in its own size, or None without the network."""
        if self.pytorch is None:
            return None
        info = self.artifact.info
        outputs = self.pytorch.run(feed_of(self.pytorch.inputs[0], fitted.canvas[None], info.preprocessing))
        return fitted.placement.restore(labels_of(outputs, info.boundary)[0])


def evaluate(
    path: Path, dataset: Dataset, options: EvaluateOptions | None = None, on_step: OnStep = quietly
) -> Evaluation:
    """Score an artifact on a data set, and PyTorch beside it if requested; write result, journal and page.

    Every photo is scored in its own size. Images that an interrupted run finished are reused if artifact, runtime,
    fitting, photo and labels are unchanged. Memory grows only by a few numbers per image. Images that cannot be read
    are left out and returned: see `Evaluation.require`.

    Args:
        path: a bundle's directory, an ONNX file of this toolkit, or a TensorRT engine.
        dataset: from `find_dataset` or `sample_dataset`.
        options: how to score, and where the results go.
        on_step: called with each step of the work.

    Raises:
        BundleError: the artifact is missing, damaged, or does not record its classes.
        CheckpointError: the checkpoint is missing where it is needed, or the artifact was exported from another one.
        ProviderError: the requested provider would not run.
        UsageError: a checkpoint is given for random weights.
        OutputError: another run holds the output, it is not a folder of an evaluation, or it cannot be written.
    """
    options = options or EvaluateOptions()
    with on_step(f"open {path}{' and rebuild its network' if options.against else ''}"):
        sources = _open_sources(path, options)
    with sources.artifact, sources.pytorch or contextlib.nullcontext(), sole_writer(options.output):
        pairs = dataset.first(options.limit).pairs
        source = _describe(path, sources, dataset, options)
        with contextlib.closing(Journal(options.output, source.conditions, sources.num_classes)) as journal:
            if journal.restart_reason:
                with on_step(f"start over: the journal in {options.output} is for {journal.restart_reason}"):
                    pass
            result = _score(sources, journal, source, pairs, on_step)
        with staged_file(options.output / RESULT_FILE) as staging:
            staging.write_text(json.dumps(result.to_dict(), indent=1, allow_nan=False) + "\n", encoding="utf-8")
        _write_page(result, sources, pairs, options, on_step)
    return result


def _open_sources(path: Path, options: EvaluateOptions) -> LabelSources:
    artifact = Segmenter(path, options.provider, use_cache=options.use_cache)
    if options.against is None:
        return LabelSources(artifact, None, options.keep_aspect)
    from fcn_deploy.models.rebuild import rebuild
    from fcn_deploy.runtime.eager import EagerRunner

    found = rebuild(artifact.info, RebuildOptions(options.checkpoint, options.module, options.module_changed))
    runner = EagerRunner(found.network, (1, 3, artifact.height, artifact.width), found.remark)
    return LabelSources(artifact, runner, options.keep_aspect)


def _describe(path: Path, sources: LabelSources, dataset: Dataset, options: EvaluateOptions) -> Source:
    pytorch = sources.pytorch.name if sources.pytorch is not None else None
    fitting = "padded" if options.keep_aspect else "stretched"
    return Source(path, sources.artifact.model_sha256, sources.artifact.runner_name, pytorch, dataset.name, fitting)


@dataclass(frozen=True)
class _Loaded(PendingPhoto):
    """A photo to label, with its files and its truth."""

    files: Files
    truth: Labels


def _score(
    sources: LabelSources, journal: Journal, source: Source, pairs: tuple[Pair, ...], on_step: OnStep
) -> Evaluation:
    """Score every pair; images and failures stay in the order of the pairs."""
    counts, pixels = Confusions.none(sources.num_classes, pytorch=sources.pytorch is not None), 0
    images, failures = [], []
    with on_step(f"label and score, images: {len(pairs)}", len(pairs)) as advance:
        for outcome in _outcomes(sources, journal, pairs):
            if isinstance(outcome, Failure):
                failures.append(outcome)
            else:
                counts += outcome.counts
                pixels += outcome.pixels
                images.append(ImageScore.of(outcome))
            advance()
    scored, unscored, resumed = tuple(images), tuple(failures), len(images) - journal.added
    info = sources.artifact.info
    return Evaluation(info, source, counts, pixels, scored, unscored, resumed, journal.restart_reason)


def _outcomes(sources: LabelSources, journal: Journal, pairs: tuple[Pair, ...]) -> Iterator[ImageRecord | Failure]:
    artifact = sources.artifact
    # One thread reads photos and truths while the runtime is busy: the next batch, and one photo more.
    with CancellingThreadPool(1) as reader:
        loaded = map_ordered(reader, partial(_load, sources, journal), pairs, artifact.batch + 1)
        batches: Iterator[Batch[_Loaded, ImageRecord | Failure]] = make_batches(artifact, loaded)
        for batch in batches:
            for entry in label_batch(artifact, run_batch(artifact, batch)):
                yield _compare(sources, journal, entry) if isinstance(entry, Labelled) else entry


def _load(sources: LabelSources, journal: Journal, pair: Pair) -> _Loaded | ImageRecord | Failure:
    """Return a pair's record from an earlier run, or its photo ready to be labelled, or why it has no score."""
    try:
        files = read_files(pair)
        finished = journal.find(pair.name, *files.sha256)
        if finished is not None:
            return finished
        photo, truth = files.decode(sources.num_classes)
        return _Loaded(sources.fit(photo), files, truth)
    except FcnDeployError as error:
        return Failure(pair.name, error)


def _compare(sources: LabelSources, journal: Journal, labelled: Labelled[_Loaded]) -> ImageRecord:
    photo = labelled.photo
    pytorch = sources.label_with_pytorch(photo.fitted)
    confusions = _confusions(photo.truth, labelled.restore(), pytorch, sources.num_classes)
    record = ImageRecord(photo.files.pair.name, *photo.files.sha256, photo.truth.size, confusions)
    journal.add(record)
    return record


def _confusions(truth: Labels, artifact: Labels, pytorch: Labels | None, num_classes: int) -> Confusions:
    own = confusion_matrix(truth, artifact, num_classes)
    if pytorch is None:
        return Confusions(own)
    return Confusions(
        own, confusion_matrix(truth, pytorch, num_classes), confusion_matrix(pytorch, artifact, num_classes)
    )


def _write_page(
    result: Evaluation, sources: LabelSources, pairs: tuple[Pair, ...], options: EvaluateOptions, on_step: OnStep
) -> None:
    """Write the page. The worst images are labelled again, because the pictures of all images need too much memory."""
    path = options.output / PAGE_FILE
    if not options.page:
        # A page of an earlier run would show outdated figures.
        path.unlink(missing_ok=True)
        return
    by_name, pictures = {pair.name: pair for pair in pairs}, []
    worst = result.worst(options.worst)
    with on_step(f"draw the worst images: {len(worst)}", len(worst)) as advance:
        for score in worst:
            pictures.append(_picture(sources, by_name[score.name], score))
            advance()
    write_page(result, pictures, path)


def _picture(sources: LabelSources, pair: Pair, score: ImageScore) -> Picture:
    photo, truth = read_files(pair).decode(sources.num_classes)
    artifact = sources.artifact.segment(photo, keep_aspect=sources.keep_aspect)
    pytorch = sources.label_with_pytorch(sources.fit(photo))
    counts = _confusions(truth, artifact, pytorch, sources.num_classes)
    maps = {"truth": truth, "PyTorch": pytorch, "artifact": artifact}
    return draw(photo, maps, score, counts, sources.artifact.info)
