"""Who labels the photos: the artifact, and PyTorch on the very same inputs."""

from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from fcn_deploy.evaluation.options import EvaluateOptions
from fcn_deploy.images import Labels, Pixels
from fcn_deploy.runtime.ends import feed_of, labels_of
from fcn_deploy.segmentation import Fitted, Segmenter

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
    from fcn_deploy.runtime.eager import EagerRunner
    from fcn_deploy.verification import rebuild

    return EagerRunner(rebuild(artifact.info, checkpoint), (1, 3, artifact.height, artifact.width))
