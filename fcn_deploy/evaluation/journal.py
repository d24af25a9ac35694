"""The journal from which an interrupted evaluation resumes: one line per finished image, in a file that only grows.

The first line holds the conditions that determine the figures: this tool's version, artifact, runtime, fitting, data
set. A journal with other conditions is replaced. An incomplete line of a killed run is cut off, with all after it.
"""

import contextlib
import json
from collections.abc import Mapping
from pathlib import Path

import msgspec

from fcn_deploy.errors import OutputError
from fcn_deploy.evaluation.scores import ImageRecord
from fcn_deploy.installation import __version__
from fcn_deploy.storage import parse_json, staged_file, unwritable

JOURNAL_FILE = "journal.jsonl"
_KIND, _FORMAT = "fcn-deploy evaluation", "1"


class Journal:
    """The finished images of an evaluation, in an open file; the caller closes it.

    Args:
        folder: its directory, which may contain only results of an evaluation.
        conditions: what the figures depend on, keyed by the name that messages use for a difference.
        num_classes: K.

    Attributes:
        path: the file.
        restart_reason: why an existing journal was discarded, e.g. `another artifact`; else empty.
        added: how many images were added since it was opened.

    Raises:
        OutputError: the folder holds other files, or the journal cannot be written.
    """

    def __init__(self, folder: Path, conditions: Mapping[str, str], num_classes: int) -> None:
        self.path = folder / JOURNAL_FILE
        self.added = 0
        self._num_classes = num_classes
        header = {"kind": _KIND, "format": _FORMAT, "version": __version__, **conditions}
        try:
            found = _read_header(self.path)
            self.restart_reason = _difference(found, header) if found is not None else ""
            if found is None or self.restart_reason:
                with staged_file(self.path) as staging:
                    staging.write_text(json.dumps(header) + "\n", encoding="utf-8")
            self._offsets = self._index()
            self._reading, self._writing = self.path.open("rb"), self.path.open("ab")
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Close the file."""
        self._reading.close()
        # Every added line was flushed; only a line that did not fit on the disk may be unwritten.
        with contextlib.suppress(OSError):
            self._writing.close()

    def find(self, name: str, photo_sha256: str, labels_sha256: str) -> ImageRecord | None:
        """Return the record of an image from an earlier run, if its photo and labels are unchanged."""
        if name not in self._offsets:
            return None
        self._reading.seek(self._offsets[name])
        record = ImageRecord.from_json(self._reading.readline(), self._num_classes)
        same = (record.photo_sha256, record.labels_sha256) == (photo_sha256, labels_sha256)
        return record if same else None

    def add(self, record: ImageRecord) -> None:
        """Append a finished image; raises OutputError if it cannot be written."""
        try:
            self._writing.write(record.to_json())
            self._writing.flush()
        except OSError as error:
            raise unwritable(self.path, error) from error
        self.added += 1

    def _index(self) -> dict[str, int]:
        """Return where the last line of each image begins; cut the file after the last valid line."""
        offsets: dict[str, int] = {}
        with self.path.open("r+b") as file:
            end = len(file.readline())
            for line in file:
                try:
                    offsets[ImageRecord.from_json(line, self._num_classes).name] = end
                except ValueError:
                    break
                end += len(line)
            file.truncate(end)
        return offsets


def _read_header(path: Path) -> dict[str, str] | None:
    """Return the first line of a journal, or None when there is no journal and a new one may be created."""
    if not path.exists():
        others = sorted(file.name for file in path.parent.iterdir() if not file.name.startswith("."))
        if others:
            raise OutputError(
                f"{path.parent} contains {others[0]} but no {JOURNAL_FILE}: it is not the folder of an evaluation",
                remedy="Choose another --output.",
            )
        return None
    with path.open("rb") as file:
        line = file.readline()
    try:
        header = msgspec.convert(parse_json(line), dict[str, str])
    except ValueError:
        header = {}
    if header.get("kind") != _KIND:
        raise OutputError(f"{path} is not an evaluation journal", remedy="Choose another --output.")
    return header


def _difference(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Name the first condition that differs from an earlier run, or return nothing."""
    names = [name for name in wanted if found.get(name) != wanted[name]]
    return f"another {names[0]}" if names else ""
