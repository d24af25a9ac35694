"""How segmented photos become results: what all formats have in common, and those of some files a photo."""

import hashlib
import io
import json
import threading
import zlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from fcn_deploy.choices import OutputFormat
from fcn_deploy.errors import OutputError
from fcn_deploy.images import LABELS_SUFFIX, OVERLAY_SUFFIX, Labels, class_shares, label_image, overlay
from fcn_deploy.prediction.plan import Plan, Prediction, Segmented, Task
from fcn_deploy.prediction.store import Store

_KEY = "fcn_deploy.key"
# NumPy reads an array's header with Python's parser, which in CPython 3.11 fails now and then when threads share it.
_PARSER = threading.Lock()


class FileFormat(ABC):
    """A format of some files a photo.

    Attributes:
        suffixes: of the files, in the order they are written; the last one holds the key.
    """

    suffixes: tuple[str, ...]

    @abstractmethod
    def encode(self, plan: Plan, segmented: Segmented, labels: Labels) -> tuple[bytes, ...]:
        """The files' contents; `labels` are h x w, in the photo's own size."""

    @abstractmethod
    def key_of(self, data: bytes) -> str | None:
        """The key in the last file; None where there is none, since others wrote it."""


class _Png(FileFormat):
    suffixes = (OVERLAY_SUFFIX, LABELS_SUFFIX)

    def encode(self, plan: Plan, segmented: Segmented, labels: Labels) -> tuple[bytes, ...]:
        over = overlay(segmented.decoded.fitted.photo, labels, plan.info)
        return _png(over), png_of_labels(plan, labels, segmented.decoded.key)

    def key_of(self, data: bytes) -> str | None:
        with Image.open(io.BytesIO(data), formats=["PNG"]) as image:
            text = image.text if isinstance(image, PngImagePlugin.PngImageFile) else {}
        return str(text[_KEY]) if _KEY in text else None


class _Npz(FileFormat):
    suffixes = (".npz",)

    def encode(self, plan: Plan, segmented: Segmented, labels: Labels) -> tuple[bytes, ...]:
        file = io.BytesIO()
        names = np.array(plan.info.class_names)
        np.savez_compressed(file, labels=labels, class_names=names, key=np.array(segmented.decoded.key))
        return (file.getvalue(),)

    def key_of(self, data: bytes) -> str | None:
        with _PARSER, np.load(io.BytesIO(data), allow_pickle=False) as arrays:
            return str(arrays["key"]) if "key" in arrays else None


class _RleJson(FileFormat):
    suffixes = (".json",)

    def encode(self, plan: Plan, segmented: Segmented, labels: Labels) -> tuple[bytes, ...]:
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
        document = {"image": str(segmented.decoded.task.image), "size": size, "classes": classes}
        return (json.dumps({**document, "key": segmented.decoded.key}, allow_nan=False).encode(),)

    def key_of(self, data: bytes) -> str | None:
        document: Any = json.loads(data)
        return str(document["key"]) if isinstance(document, dict) and "key" in document else None


FILE_FORMATS = {OutputFormat.PNG: _Png(), OutputFormat.NPZ: _Npz(), OutputFormat.RLE_JSON: _RleJson()}

# What reading a key out of a file that others wrote, or damaged, may raise.
UNREADABLE = (OSError, ValueError, SyntaxError, KeyError, EOFError, zlib.error)


def run_lengths(mask: np.ndarray[Any, np.dtype[np.bool_]]) -> list[int]:
    """Lengths of an h x w mask's alternating runs, columns first, beginning with one of 0: COCO's uncompressed RLE.

    Source: the file format of COCO's masks (cocodataset.org, `pycocotools.mask.frPyObjects`).
    """
    flat = mask.ravel(order="F")
    changes = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    edges = np.concatenate([[0] if not flat[0] else [0, 0], changes, [flat.size]])
    return [int(n) for n in np.diff(edges)]


def png_of_labels(plan: Plan, labels: Labels, key: str) -> bytes:
    """A palette PNG of the labels, with its key."""
    text = PngImagePlugin.PngInfo()
    text.add_text(_KEY, key)
    return _png(label_image(labels, plan.info), text)


def _png(image: Image.Image, text: PngImagePlugin.PngInfo | None = None) -> bytes:
    file = io.BytesIO()
    image.save(file, "PNG", pnginfo=text)
    return file.getvalue()


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


# Some 10 MB of compressed labels; as many photos are segmented again after an interruption.
ROWS_PER_PART = 256
_PREFIX, _SUFFIX = "part-", ".parquet"


class TableSink(Sink):
    """Rows of files that are written once and never added to: `part-HASH.parquet`, named after their rows' keys.

    Raises:
        OutputError: a part that is there cannot be read.
    """

    rows_per_write = ROWS_PER_PART

    def __init__(self, plan: Plan, store: Store) -> None:
        super().__init__(plan, store)
        self._part_of = {(image, key): part for image, key, part in _index(store)}

    def _files(self, task: Task, key: str) -> tuple[str, ...]:
        part = self._part_of.get((str(task.image), key))
        return (part,) if part else ()

    def _encode(self, segmented: Segmented, labels: Labels, prediction: Prediction) -> Encoded:
        decoded = segmented.decoded
        height, width = labels.shape
        row = {
            "image": str(decoded.task.image),
            "key": decoded.key,
            "height": height,
            "width": width,
            "labels_png": png_of_labels(self.plan, labels, decoded.key),
            "classes": [{"name": name, "share": share} for name, share in prediction.shares],
        }
        return Encoded(decoded.task, decoded.key, prediction, row=row)

    def write(self, results: Sequence[Encoded]) -> list[Prediction]:
        """As one part; written again, it is the same file."""
        name = _write_part(self.store, [result.row for result in results])
        return [replace(result.prediction, files=(self.store.where(name),)) for result in results]

    def settle(self) -> None:
        """Leave one row per image, by its content now: it, the model or the options may have changed between runs."""
        rows = _index(self.store)
        counts = Counter(image for image, _, _ in rows)
        kept: dict[str, str] = {}
        for image, key, part in rows:
            if counts[image] > 1 and key == self._key_now(image):
                kept.setdefault(image, part)
        for part in sorted({part for image, _, part in rows if image in kept and kept[image] != part}):
            _write_without(self.store, part, {image for image in kept if kept[image] != part})

    def _key_now(self, image: str) -> str | None:
        with suppress(OSError):
            return self.plan.key((self.plan.folder / image).read_bytes())
        return None


def _index(store: Store) -> list[tuple[str, str, str]]:
    """Image, key and part of every row."""
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
        table = parquet.read_table(io.BytesIO(store.read(part) or b""), columns=columns)
    except (pa.ArrowException, KeyError) as error:
        raise OutputError(
            f"{store.where(part)} is no table of predictions: {error}",
            remedy="Move it away, or choose another --output.",
        ) from error
    rows: list[dict[str, Any]] = table.to_pylist()
    return rows


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
