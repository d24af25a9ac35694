"""What is written for a photo, as bytes by suffix of the file's name; each result carries the key it was made for."""

import io
import json
import threading
import zlib
from abc import ABC, abstractmethod
from typing import Any

import numpy as np
from PIL import Image, PngImagePlugin

from fcn_deploy.images import Labels, label_image
from fcn_deploy.overlay import class_shares, overlay
from fcn_deploy.photos import LABELS_SUFFIX, OVERLAY_SUFFIX
from fcn_deploy.prediction.options import OutputFormat
from fcn_deploy.prediction.plan import Plan
from fcn_deploy.prediction.work import Segmented

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
