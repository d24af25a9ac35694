"""How segmented photos become results: what all formats have in common, and those of some files a photo."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fcn_deploy.images import Labels
from fcn_deploy.overlay import class_shares
from fcn_deploy.prediction.formats import FILE_FORMATS, UNREADABLE
from fcn_deploy.prediction.plan import Plan
from fcn_deploy.prediction.store import Store
from fcn_deploy.prediction.work import Prediction, Segmented, Task


@dataclass(frozen=True)
class Encoded:
    """A result that is not written yet.

    Attributes:
        task: whose.
        key: what it was made for.
        prediction: what will be true once it is written, but for its files.
        content: bytes by file name, in the order they are to be written.
        row: a row of a table instead.
    """

    task: Task
    key: str
    prediction: Prediction
    content: tuple[tuple[str, bytes], ...] = ()
    row: dict[str, Any] = field(default_factory=dict)


class Sink(ABC):
    """Encodes and writes results; travels between processes.

    Attributes:
        plan: the run.
        store: where results go.
        rows_per_write: how many results are written at once.
    """

    rows_per_write: int = 1

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store

    def finished(self, task: Task, key: str) -> Prediction | None:
        """What is there already for a photo with this key; None if it has to be done."""
        files = self._files(task, key)
        if not files:
            return None
        untrained = self.plan.info.provenance.untrained
        return Prediction(task.image, tuple(map(self.store.where, files)), done_before=True, untrained=untrained)

    @abstractmethod
    def _files(self, task: Task, key: str) -> tuple[str, ...]:
        """The names of a photo's results with this key, if they are all there."""

    def encode(self, segmented: Segmented) -> Encoded:
        """A photo's result, in its own size, ready to be written."""
        decoded, info = segmented.decoded, self.plan.info
        labels = decoded.fitted.placement.restore(segmented.labels)
        shares = tuple((info.class_names[label], share) for label, share in class_shares(labels))
        prediction = Prediction(
            decoded.task.image,
            shares=shares,
            untrained=info.provenance.untrained,
            inference_ms=segmented.inference_ms,
        )
        return self._encode(segmented, labels, prediction)

    @abstractmethod
    def _encode(self, segmented: Segmented, labels: Labels, prediction: Prediction) -> Encoded: ...

    @abstractmethod
    def write(self, results: Sequence[Encoded]) -> list[Prediction]:
        """Write results, each file in one move.

        Raises:
            OutputError: they cannot be written.
        """

    @abstractmethod
    def settle(self) -> None:
        """Remove, at the end of a run, what earlier runs left and this one replaced."""


class FileSink(Sink):
    """Some files a photo."""

    def __init__(self, plan: Plan, store: Store) -> None:
        super().__init__(plan, store)
        self._format = FILE_FORMATS[plan.options.output_format]

    def _files(self, task: Task, key: str) -> tuple[str, ...]:
        names = tuple(task.name + suffix for suffix in self._format.suffixes)
        data = self.store.read(names[-1])
        try:
            found = self._format.key_of(data) if data is not None else None
        except UNREADABLE:
            return ()
        return names if found == key and all(self.store.exists(name) for name in names[:-1]) else ()

    def _encode(self, segmented: Segmented, labels: Labels, prediction: Prediction) -> Encoded:
        decoded = segmented.decoded
        contents = self._format.encode(self.plan, segmented, labels)
        names = (decoded.task.name + suffix for suffix in self._format.suffixes)
        return Encoded(decoded.task, decoded.key, prediction, tuple(zip(names, contents, strict=True)))

    def write(self, results: Sequence[Encoded]) -> list[Prediction]:
        """The one with the key last: until then, the photo counts as not done."""
        for result in results:
            for name, data in result.content:
                self.store.write(name, data)
        return [replace(r.prediction, files=tuple(self.store.where(name) for name, _ in r.content)) for r in results]

    def settle(self) -> None:
        """Nothing is left: files are replaced under their names."""
