"""Label maps of photos of any size with an artifact of one fixed size."""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np

from fcn_deploy.artifact import open_artifact
from fcn_deploy.errors import FcnDeployError, ImageError
from fcn_deploy.images import (
    Labels,
    Pixels,
    Placement,
    label_image,
    mean_image,
    place,
    read_image,
)
from fcn_deploy.model_info import ModelInfo
from fcn_deploy.overlay import class_shares, overlay
from fcn_deploy.runtime.base import Runner
from fcn_deploy.runtime.ends import feed_of, labels_of
from fcn_deploy.runtime.open import runner_for
from fcn_deploy.runtime.provider import Provider
from fcn_deploy.staging import staged_file


@dataclass(frozen=True)
class PredictOptions:
    """How photos are segmented, and where the results go.

    Attributes:
        output: directory of the label maps and overlays, made if needed.
        keep_aspect: pad the photo to the input's shape with the mean colour instead of stretching it.
        provider: where ONNX Runtime runs.
    """

    output: Path = Path("predictions")
    keep_aspect: bool = False
    provider: Provider = Provider.CPU


@dataclass(frozen=True)
class Prediction:
    """One segmented photo, or the reason it was not.

    Attributes:
        image: the photo.
        labels_path: palette PNG of the labels, in the photo's size; None after a failure.
        overlay_path: the labels over the photo, with a legend; None after a failure.
        shares: each class found with its share of the pixels, largest first.
        failure: what went wrong, or None.
        untrained: whether the model's weights are random, so that the labels mean nothing.
    """

    image: Path
    labels_path: Path | None = None
    overlay_path: Path | None = None
    shares: tuple[tuple[str, float], ...] = ()
    failure: FcnDeployError | None = None
    untrained: bool = False

    def to_dict(self) -> dict[str, Any]:
        """Every fact, for JSON."""
        return {
            "image": str(self.image),
            "labels": str(self.labels_path) if self.labels_path else None,
            "overlay": str(self.overlay_path) if self.overlay_path else None,
            "classes": dict(self.shares),
            "untrained": self.untrained,
            "failure": str(self.failure) if self.failure else None,
        }


def predict(path: Path, images: Sequence[Path], options: PredictOptions | None = None) -> Iterator[Prediction]:
    """Segment each photo and write its label map and overlay; yields in order, failures included.

    Raises:
        BundleError: the artifact is missing, damaged, or has no facts about its classes.
        ProviderError: the provider asked for would not run.
    """
    options = options or PredictOptions()
    bundle = open_artifact(path)
    info, (batch, _, height, width) = bundle.info, bundle.input_shape
    names = _output_names(images)
    with runner_for(bundle.model_path, options.provider) as runner:
        for start in range(0, len(images), batch):
            chunk = images[start : start + batch]
            placed = [_load(image, (height, width), options) for image in chunk]
            labels = _segment(runner, [p for p in placed if not isinstance(p, ImageError)], (batch, height, width))
            for image, item in zip(chunk, placed, strict=True):
                if isinstance(item, ImageError):
                    yield Prediction(image, failure=item, untrained=info.provenance.untrained)
                else:
                    yield _write(image, item, next(labels), info, options.output / names[image])


def _output_names(images: Sequence[Path]) -> dict[Path, str]:
    """A file name per image: its stem, or the first free `stem-2`, `stem-3`, ... where several share it.

    File systems that ignore case are taken into account.
    """
    stems = Counter(image.stem.casefold() for image in images)
    names: dict[Path, str] = {}
    taken: set[str] = set()
    for image in images:
        candidates = (image.stem if n == 1 else f"{image.stem}-{n}" for n in count(1))
        own = image.stem.casefold()
        names[image] = next(
            name for name in candidates if (key := name.casefold()) not in taken and (key == own or key not in stems)
        )
        taken.add(names[image].casefold())
    return names


@dataclass(frozen=True)
class _Placed:
    photo: Pixels
    canvas: Pixels
    placement: Placement


def _load(image: Path, size: tuple[int, int], options: PredictOptions) -> _Placed | ImageError:
    try:
        photo = read_image(image)
    except ImageError as error:
        return error
    return _Placed(photo, *place(photo, *size, keep_aspect=options.keep_aspect))


def _segment(runner: Runner, placed: list[_Placed], shape: tuple[int, int, int]) -> Iterator[Labels]:
    """One H x W label map per placed photo; a batch that is not full is filled with the mean colour."""
    if not placed:
        return
    batch, height, width = shape
    canvases = [item.canvas for item in placed] + [mean_image(height, width)] * (batch - len(placed))
    yield from labels_of(runner.run(feed_of(runner.inputs[0], np.stack(canvases))))


def _write(image: Path, item: _Placed, labels: Labels, info: ModelInfo, stem: Path) -> Prediction:
    restored = item.placement.restore(labels)
    labels_path, overlay_path = (stem.with_name(f"{stem.name}.{kind}.png") for kind in ("labels", "overlay"))
    for target, picture in (
        (labels_path, label_image(restored, info)),
        (overlay_path, overlay(item.photo, restored, info)),
    ):
        with staged_file(target) as staging:
            picture.save(staging)
    shares = tuple((info.class_names[label], share) for label, share in class_shares(restored))
    return Prediction(image, labels_path, overlay_path, shares, untrained=info.provenance.untrained)
