"""Results as rows of Parquet files, for data sets too large for a file a photo."""

import hashlib
import io
from collections import Counter
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from fcn_deploy.errors import OutputError
from fcn_deploy.images import Labels
from fcn_deploy.prediction.formats import png_of_labels
from fcn_deploy.prediction.plan import Plan
from fcn_deploy.prediction.sinks import Encoded, Sink
from fcn_deploy.prediction.store import Store
from fcn_deploy.prediction.work import Prediction, Segmented, Task

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
