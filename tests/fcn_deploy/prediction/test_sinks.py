"""What each format holds, read back by means other than the toolkit's own."""

import gc
import io
import json
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image
from pyarrow import parquet
from pycocotools import mask as coco

import fcn_deploy as fd
from fcn_deploy.prediction.sinks import FILE_FORMATS, run_lengths

# pycocotools' arrays are older than NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation doesn't accept:DeprecationWarning")


def labels_by_png(bundle: Path, photos: list[Path], output: Path) -> dict[str, np.ndarray]:
    found = fd.predict(bundle, photos, fd.PredictOptions(output))
    return {p.image.stem: np.asarray(Image.open(p.labels_path)) for p in found if p.labels_path}


def decoded_by_coco(segmentation: dict[str, Any]) -> np.ndarray:
    height, width = segmentation["size"]
    return np.asarray(coco.decode(coco.frPyObjects(segmentation, height, width)), dtype=bool)


@given(arrays(np.bool_, st.tuples(st.integers(1, 9), st.integers(1, 9))))
def test_run_lengths_are_those_of_coco(mask: np.ndarray) -> None:
    counts = run_lengths(mask)

    assert sum(counts) == mask.size
    assert all(counts[1:])
    decoded = decoded_by_coco({"size": list(mask.shape), "counts": counts})
    assert np.array_equal(decoded, mask)


@pytest.fixture
def hasty_threads() -> Iterator[None]:
    """Threads change at almost every step, and a callback of the garbage collector's lets them do so anywhere."""

    def callback(*_: object) -> None:
        sum(range(50))

    interval, threshold = sys.getswitchinterval(), gc.get_threshold()
    sys.setswitchinterval(1e-6)
    gc.set_threshold(5)
    gc.callbacks.append(callback)
    yield
    gc.callbacks.remove(callback)
    gc.set_threshold(*threshold)
    sys.setswitchinterval(interval)


@pytest.mark.usefixtures("hasty_threads")
def test_keys_are_read_by_many_threads() -> None:
    """In CPython 3.11, one in ten such readings failed with SystemError when threads shared the parser."""
    file = io.BytesIO()
    np.savez(file, key=np.array("k" * 64))
    key_of = FILE_FORMATS[fd.OutputFormat.NPZ].key_of
    with ThreadPoolExecutor(6) as threads:
        assert set(threads.map(key_of, [file.getvalue()] * 1500)) == {"k" * 64}


def test_every_format_holds_the_same_labels(shared_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    expected = labels_by_png(shared_bundle, photos, tmp_path / "png")
    for output_format in ("npz", "rle-json", "parquet"):
        options = fd.PredictOptions(tmp_path / output_format, output_format=fd.OutputFormat(output_format))
        done = list(fd.predict(shared_bundle, photos, options))
        assert [p.image for p in done] == photos
        assert all(Path(file).is_file() for p in done for file in p.files)

    for name, labels in expected.items():
        with np.load(tmp_path / "npz" / f"{name}.npz") as found:
            assert np.array_equal(found["labels"], labels)
            assert found["class_names"].tolist()[0] == "background"
    assert rle_labels(tmp_path / "rle-json") == {name: labels.tolist() for name, labels in expected.items()}
    assert table_labels(tmp_path / "parquet") == {name: labels.tolist() for name, labels in expected.items()}


def rle_labels(folder: Path) -> dict[str, list[list[int]]]:
    found = {}
    for path in sorted(folder.glob("*.json")):
        document = json.loads(path.read_text())
        labels = np.full(document["size"], 255, dtype=np.uint8)
        for entry in document["classes"]:
            mask = decoded_by_coco(entry["segmentation"])
            assert mask.mean() == pytest.approx(entry["share"])
            labels[mask] = entry["label"]
        found[path.stem] = labels.tolist()
    return found


def table_labels(folder: Path) -> dict[str, list[list[int]]]:
    found = {}
    for row in parquet.read_table(folder).to_pylist():
        labels = np.asarray(Image.open(io.BytesIO(row["labels_png"])))
        assert labels.shape == (row["height"], row["width"])
        assert sum(entry["share"] for entry in row["classes"]) == pytest.approx(1)
        found[Path(row["image"]).stem] = labels.tolist()
    return found
