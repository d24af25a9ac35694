"""What an interrupted evaluation goes on from: one line per finished image, in a file that only grows.

The first line says what makes the figures what they are: this tool's version, artifact, runtime, how photos are fitted,
data set. A journal of anything else is begun anew. A line that a killed run left half-written, and what follows it, is
cut off.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import BinaryIO, Self

from fcn_deploy.errors import OutputError
from fcn_deploy.evaluation.scores import ImageRecord
from fcn_deploy.installation import __version__
from fcn_deploy.storage import staged_file, unwritable

JOURNAL_FILE = "journal.jsonl"
_KIND, _FORMAT = "fcn-deploy evaluation", "1"


class Journal:
    """The finished images of an evaluation: a context manager around the open file.

    Args:
        folder: the directory it lies in, which holds nothing else than results of an evaluation.
        conditions: what the figures depend on, by the name under which a difference is reported.
        num_classes: K.

    Attributes:
        path: the file.
        anew: why the journal that lay there is of no use, e.g. `another artifact`; else empty.
        added: how many images were added to it since it was opened.

    Raises:
        OutputError: the folder holds other files, or the journal cannot be written.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, str], num_classes: int) -> None:
        self.path = folder / JOURNAL_FILE
        self.added = 0
        self._num_classes = num_classes
        self._offsets: dict[str, int] = {}
        header = {"kind": _KIND, "format": _FORMAT, "version": __version__, **conditions}
        try:
            found = _read_header(self.path)
            self.anew = _difference(found, header) if found is not None else ""
            if found is None or self.anew:
                self._begin(header)
            self._cut(self._index())
        except OSError as error:
            raise unwritable(self.path, error) from error

    def __enter__(self) -> Self:
        self._reading: BinaryIO = self.path.open("rb")
        self._writing: BinaryIO = self.path.open("ab")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._reading.close()
        # Every line was flushed when it was added: only one that found no room may be left.
        with contextlib.suppress(OSError):
            self._writing.close()

    def find(self, name: str, photo_sha256: str, labels_sha256: str) -> ImageRecord | None:
        """What an earlier run found for an image, if its photo and labels are the same as then."""
        if name not in self._offsets:
            return None
        self._reading.seek(self._offsets[name])
        record = self._parse(self._reading.readline())
        same = (record.photo_sha256, record.labels_sha256) == (photo_sha256, labels_sha256)
        return record if same else None

    def add(self, record: ImageRecord) -> None:
        """Write a finished image down.

        Raises:
            OutputError: it cannot be written.
        """
        try:
            self._writing.write(json.dumps(record.to_dict()).encode() + b"\n")
            self._writing.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.added += 1

    def _begin(self, header: Mapping[str, str]) -> None:
        with staged_file(self.path) as staging:
            staging.write_text(json.dumps(header) + "\n", encoding="utf-8")

    def _index(self) -> int:
        """Where each image's last line begins; returns where the last whole line ends."""
        with self.path.open("rb") as file:
            end = len(file.readline())
            for line in file:
                try:
                    self._offsets[self._parse(line).name] = end
                except (ValueError, KeyError, TypeError, AttributeError):
                    break
                end += len(line)
        return end

    def _cut(self, end: int) -> None:
        with self.path.open("r+b") as file:
            file.truncate(end)

    def _parse(self, line: bytes) -> ImageRecord:
        if not line.endswith(b"\n"):
            raise ValueError("half a line")
        return ImageRecord.from_dict(json.loads(line), self._num_classes)


def _read_header(path: Path) -> dict[str, str] | None:
    """The first line of a journal, or None where a new one may be begun."""
    if not path.exists():
        others = sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))
        if others:
            raise OutputError(
                f"{path.parent} holds {others[0]} and no {JOURNAL_FILE}: it is no folder of an evaluation",
                remedy="Choose another --output.",
            )
        return None
    with path.open("rb") as file:
        line = file.readline()
    try:
        header = json.loads(line)
        if header["kind"] != _KIND:
            raise ValueError(header["kind"])
    except (ValueError, KeyError, TypeError) as error:
        raise OutputError(f"{path} is no journal of an evaluation", remedy="Choose another --output.") from error
    return dict(header)


def _difference(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """What an earlier run had otherwise, or nothing."""
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return f"another {names[0]}" if names else ""
