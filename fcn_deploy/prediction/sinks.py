"""How labelled photos become results: a few files for each photo, or rows of a Parquet table."""

import hashlib
import io
import json
import os
import threading
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from fcn_deploy.choices import OutputFormat
from fcn_deploy.errors import OutputError
from fcn_deploy.images import LABELS_SUFFIX, OVERLAY_SUFFIX, Labels, class_shares, label_image, open_picture, overlay
from fcn_deploy.prediction.options import Decoded, Plan, Prediction, Task
from fcn_deploy.prediction.store import Store
from fcn_deploy.segmentation import Labelled
from fcn_deploy.storage import parse_json

_KEY = "fcn_deploy.key"
# NumPy reads array headers with Python's parser, which occasionally fails in CPython 3.11 when threads share it.
_PARSER = threading.Lock()
# Photos become 2 % smaller with zlib's default level, which takes three times as long.
_PHOTO_LEVEL = 2


class OccupiedError(OutputError):
    """The name of a result is taken by a file of the user's (exit code 3)."""


@dataclass(frozen=True)
class FileFormat:
    """A format with some files for each photo."""

    suffixes: tuple[str, ...]  # of the files, in the order they are written; each holds the key
    # returns the files' contents, from the plan, the photo and its h x w labels in the photo's own size
    encode: Callable[[Plan, Decoded, Labels], tuple[bytes, ...]]
    # returns the key in a file, or None when it has none because something else wrote it
    key_of: Callable[[bytes], str | None]


def _encode_png(plan: Plan, photo: Decoded, labels: Labels) -> tuple[bytes, ...]:
    picture = overlay(photo.fitted.photo, labels, plan.info)
    return _png(picture, photo.key, _PHOTO_LEVEL), _labels_png(plan, labels, photo.key)


def _png_key(data: bytes) -> str | None:
    # The key comes before the pixels, which are not decoded.
    with open_picture(data, ["PNG"]) as image:
        return str(image.info[_KEY]) if _KEY in image.info else None


def _labels_png(plan: Plan, labels: Labels, key: str) -> bytes:
    """Return a palette PNG of the labels, with its key."""
    return _png(label_image(labels, plan.info), key)


def _png(image: Image.Image, key: str, level: int = zlib.Z_DEFAULT_COMPRESSION) -> bytes:
    file, text = io.BytesIO(), PngImagePlugin.PngInfo()
    text.add_text(_KEY, key)
    image.save(file, "PNG", pnginfo=text, compress_level=level)
    return file.getvalue()


def _encode_npz(plan: Plan, photo: Decoded, labels: Labels) -> tuple[bytes, ...]:
    file = io.BytesIO()
    np.savez_compressed(file, labels=labels, class_names=np.array(plan.info.class_names), key=np.array(photo.key))
    return (file.getvalue(),)


def _npz_key(data: bytes) -> str | None:
    with _PARSER, np.load(io.BytesIO(data), allow_pickle=False) as arrays:
        return str(arrays["key"]) if "key" in arrays else None


def _encode_rle_json(plan: Plan, photo: Decoded, labels: Labels) -> tuple[bytes, ...]:
    size = list(labels.shape)
    classes = [
        {
            "label": label,
            "name": plan.info.class_names[label],
            "share": share,
            "segmentation": {"size": size, "counts": run_lengths(labels == label)},
        }
        for label, share in class_shares(labels)
    ]
    document = {"image": str(photo.task.image), "size": size, "classes": classes, "key": photo.key}
    return (json.dumps(document, allow_nan=False).encode(),)


def _rle_json_key(data: bytes) -> str | None:
    document: Any = parse_json(data)
    is_ours = isinstance(document, dict) and document.keys() == {"image", "size", "classes", "key"}
    return str(document["key"]) if is_ours else None


def run_lengths(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    """Return the lengths of an h x w mask's alternating runs, columns first, zeros first: COCO's uncompressed RLE.

    Source: the file format of COCO's masks (cocodataset.org, `pycocotools.mask.frPyObjects`).
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0] if not flat[0] else [0, 0], changes, [flat.size]])
    return [int(n) for n in np.diff(edges)]


FILE_FORMATS = {
    OutputFormat.PNG: FileFormat((OVERLAY_SUFFIX, LABELS_SUFFIX), _encode_png, _png_key),
    OutputFormat.NPZ: FileFormat((".npz",), _encode_npz, _npz_key),
    OutputFormat.RLE_JSON: FileFormat((".json",), _encode_rle_json, _rle_json_key),
}


@dataclass(frozen=True)
class Encoded:
    """A result that is ready to be written."""

    prediction: Prediction  # the prediction, still without the names of its files
    # names and contents, in the order they are to be written; empty for a row of a table
    files: tuple[tuple[str, bytes], ...] = ()
    row: dict[str, Any] = field(default_factory=dict)  # a row of a table; empty for files


class Sink(ABC):
    """Encodes and writes the results of a plan to a store; travels between processes."""

    rows_per_write: int = 1  # results that are written at once

    def __init__(self, plan: Plan, store: Store) -> None:
        self.plan = plan
        self.store = store

    def finished(self, task: Task, key: str) -> Prediction | None:
        """Return the existing results of a photo with this key, or None when it still has to be segmented."""
        files = self._existing(task, key)
        if not files:
            return None
        untrained = self.plan.info.provenance.untrained
        return Prediction(task.image, tuple(map(self.store.location, files)), done_before=True, untrained=untrained)

    @abstractmethod
    def _existing(self, task: Task, key: str) -> tuple[str, ...]:
        """Return the names of a photo's results with this key if all of them exist, or nothing."""

    def encode(self, labelled: Labelled[Decoded]) -> Encoded:
        """Return a photo's result, in its own size, ready to be written."""
        photo, info, labels = labelled.photo, self.plan.info, labelled.restore()
        prediction = Prediction(
            photo.task.image,
            shares=tuple((info.class_names[label], share) for label, share in class_shares(labels)),
            untrained=info.provenance.untrained,
            inference_ms=labelled.inference_ms,
        )
        return self._encode(photo, labels, prediction)

    @abstractmethod
    def _encode(self, photo: Decoded, labels: Labels, prediction: Prediction) -> Encoded: ...

    def check_replaceable(self, task: Task) -> None:  # noqa: B027 - the names of parts are hashes
        """Raise OccupiedError if a result's name is taken by a file that `predict` did not write."""

    @abstractmethod
    def write(self, results: Sequence[Encoded]) -> list[Prediction]:
        """Write results, each file in one move; raises OutputError if they cannot be written."""

    def remove_replaced(self) -> None:  # noqa: B027 - files are replaced under their names
        """Remove, at the end of a run, results of earlier runs that this run replaced."""


class FileSink(Sink):
    """Writes a few files for each photo."""

    def __init__(self, plan: Plan, store: Store) -> None:
        super().__init__(plan, store)
        self._format = FILE_FORMATS[plan.options.output_format]

    def _existing(self, task: Task, key: str) -> tuple[str, ...]:
        names = self._names(task)
        found = self._key(names[-1])
        return names if found == key and all(self.store.exists(name) for name in names[:-1]) else ()

    def check_replaceable(self, task: Task) -> None:
        """Raise OccupiedError if a result's name is taken by a file without a key, unless `force` is set."""
        if self.plan.options.force:
            return
        for name in self._names(task):
            if self.store.exists(name) and self._key(name) is None:
                raise OccupiedError(
                    f"{self.store.location(name)} exists, and predict did not write it",
                    remedy="Choose another --output, or pass --force to replace it.",
                )

    def _names(self, task: Task) -> tuple[str, ...]:
        return tuple(task.name + suffix for suffix in self._format.suffixes)

    def _key(self, name: str) -> str | None:
        """Return the key in a result; None if there is no such file, or it has none."""
        data = self.store.read(name)
        try:
            return self._format.key_of(data) if data is not None else None
        except Exception:  # readers raise many kinds of errors for files that are damaged, or of others
            return None

    def _encode(self, photo: Decoded, labels: Labels, prediction: Prediction) -> Encoded:
        contents = self._format.encode(self.plan, photo, labels)
        return Encoded(prediction, tuple(zip(self._names(photo.task), contents, strict=True)))

    def write(self, results: Sequence[Encoded]) -> list[Prediction]:
        """Write the file with the key last: until then, the photo counts as not done."""
        for result in results:
            for name, data in result.files:
                self.store.write(name, data)
        return [replace(r.prediction, files=tuple(self.store.location(name) for name, _ in r.files)) for r in results]


# About 10 MB of compressed labels; an interruption loses up to this many photos.
ROWS_PER_PART = 256
_PREFIX, _SUFFIX = "part-", ".parquet"


class TableSink(Sink):
    """Writes rows of `part-HASH.parquet`: files named after their rows' keys, written once and never appended to.

    Raises:
        OutputError: an existing part cannot be read.
    """

    rows_per_write = ROWS_PER_PART

    def __init__(self, plan: Plan, store: Store) -> None:
        super().__init__(plan, store)
        self._part_of = {(image, key): part for image, key, part in _index(store)}

    def _existing(self, task: Task, key: str) -> tuple[str, ...]:
        part = self._part_of.get((_text(task.image), key))
        return (part,) if part else ()

    def _encode(self, photo: Decoded, labels: Labels, prediction: Prediction) -> Encoded:
        height, width = labels.shape
        row = {
            "image": _text(photo.task.image),
            "key": photo.key,
            "height": height,
            "width": width,
            "labels_png": _labels_png(self.plan, labels, photo.key),
            "classes": [{"name": name, "share": share} for name, share in prediction.shares],
        }
        return Encoded(prediction, row=row)

    def write(self, results: Sequence[Encoded]) -> list[Prediction]:
        """Write one part; writing it again gives the same file."""
        name = _write_part(self.store, [result.row for result in results])
        return [replace(result.prediction, files=(self.store.location(name),)) for result in results]

    def remove_replaced(self) -> None:
        """Keep one row per image: the one for its current content and this run's model and options."""
        rows = _index(self.store)
        counts = Counter(image for image, _, _ in rows)
        kept: dict[str, str] = {}
        for image, key, part in rows:
            if counts[image] > 1 and key == self._key_now(image):
                kept.setdefault(image, part)
        for part in sorted({part for image, _, part in rows if image in kept and kept[image] != part}):
            _write_without(self.store, part, {image for image in kept if kept[image] != part})

    def _key_now(self, image: str) -> str | None:
        path = self.plan.folder / image
        with suppress(OSError, ValueError):
            return self.plan.key(path.read_bytes()) if path.is_file() else None
        return None


def _text(path: Path) -> str:
    r"""Return a path as text that a table can hold: bytes that are not UTF-8 become `\xff`."""
    return os.fsencode(path).decode(errors="backslashreplace")


def _index(store: Store) -> list[tuple[str, str, str]]:
    """Return image, key and part of every row."""
    parts = [name for name in store.names(_SUFFIX) if name.startswith(_PREFIX)]
    return [(row["image"], row["key"], part) for part in parts for row in _rows(store, part, ["image", "key"])]


def _write_without(store: Store, part: str, images: set[str]) -> None:
    """Replace a part by one without these images."""
    rows = [row for row in _rows(store, part) if row["image"] not in images]
    if rows:
        _write_part(store, rows)
    store.remove(part)


def _rows(store: Store, part: str, columns: list[str] | None = None) -> list[dict[str, Any]]:
    import pyarrow as pa
    from pyarrow import parquet

    try:
        # Not `read_table`: a thread of Arrow's that is still at work when the process ends would abort it.
        file = parquet.ParquetFile(pa.BufferReader(store.read(part) or b""), pre_buffer=False)
        missing = [name for name in columns or () if name not in file.schema_arrow.names]
        if missing:  # Arrow would leave it out
            raise _no_table(store, part, f"it has no column {missing[0]!r}")
        rows: list[dict[str, Any]] = file.read(columns, use_threads=False).to_pylist()
    except pa.ArrowException as error:
        raise _no_table(store, part, str(error)) from error
    return rows


def _no_table(store: Store, part: str, problem: str) -> OutputError:
    return OutputError(
        f"{store.location(part)} is not a table of predictions: {problem}",
        remedy="Move it elsewhere, or choose another --output.",
    )


def _write_part(store: Store, rows: Sequence[dict[str, Any]]) -> str:
    import pyarrow as pa
    from pyarrow import parquet

    keys = " ".join(f"{row['image']} {row['key']}" for row in rows)
    name = f"{_PREFIX}{hashlib.sha256(keys.encode()).hexdigest()[:16]}{_SUFFIX}"
    classes = pa.list_(pa.struct([("name", pa.string()), ("share", pa.float64())]))
    schema = pa.schema([
        ("image", pa.string()), ("key", pa.string()), ("height", pa.int32()), ("width", pa.int32()),
        ("labels_png", pa.binary()), ("classes", classes),
    ])  # fmt: skip
    file = io.BytesIO()
    # PNGs do not become smaller.
    parquet.write_table(pa.Table.from_pylist(list(rows), schema=schema), file, compression="none")
    store.write(name, file.getvalue())
    return name
