"""Data sets with true labels: finding photos and label maps in Pascal VOC's layout or two folders, and reading them."""

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from fcn_deploy.assets import SAMPLE_LABELS, SAMPLE_SCENE
from fcn_deploy.errors import FcnDeployError, InputFileError, UsageError
from fcn_deploy.images import Labels, Pixels, decode_image, find_images, open_picture, read_file
from fcn_deploy.model_info import VOID_LABEL

# Names in Pascal VOC's development kit, and the default names of the two folders.
_VOC_PHOTOS, _VOC_LABELS, _VOC_SPLITS = "JPEGImages", "SegmentationClass", "ImageSets/Segmentation"
_PHOTOS, _LABELS = "images", "labels"
_DEFAULT_SPLIT = "val"
_LISTED = 10


@dataclass(frozen=True)
class Pair:
    """A photo and its true labels.

    Attributes:
        name: name of both, unique in the data set.
        photo: an image file.
        labels: a PNG file whose pixel values are the labels.
    """

    name: str
    photo: Path
    labels: Path


@dataclass(frozen=True)
class Dataset:
    """Photos with their true labels, in the order in which they are scored.

    Attributes:
        name: its kind and path, for reports.
        pairs: photos and label maps; every file existed when the data set was searched.
    """

    name: str
    pairs: tuple[Pair, ...]

    def first(self, limit: int | None) -> "Dataset":
        """Return the data set with its first `limit` pairs, or all of them for None."""
        return replace(self, pairs=self.pairs[:limit])


def sample_dataset() -> Dataset:
    """Return the bundled scene, held out from the sample checkpoint, with its true labels."""
    return Dataset("the sample scene", (Pair(SAMPLE_SCENE.stem, SAMPLE_SCENE, SAMPLE_LABELS),))


def find_dataset(root: Path, split: str | None = None, images: str | None = None, labels: str | None = None) -> Dataset:
    """Find the photos and label maps of a data set, by the layout of its folder.

    Args:
        root: a folder that holds `JPEGImages`, `SegmentationClass` and `ImageSets/Segmentation` (Pascal VOC), or a
            folder of photos and one of label PNGs of the same names.
        split: for Pascal VOC, the name of a list in `ImageSets/Segmentation`; None means `val`.
        images: folder of photos, relative to `root`; None means `images`.
        labels: folder of label PNGs, relative to `root`; None means `labels`.

    Raises:
        InputFileError: the layout or split does not exist or is empty, or photos or labels are missing; the message
            counts the missing files and names the first ten.
        UsageError: a split is given for two folders, which have none.
    """
    if not root.is_dir():
        raise InputFileError(
            f"data set {root} is not a folder", remedy="Check the path, or pass sample for the bundled scene."
        )
    as_folders = images is not None or labels is not None or not (root / _VOC_PHOTOS).is_dir()
    if not as_folders:
        return _voc(root, split or _DEFAULT_SPLIT)
    if images is None and labels is None and not (root / _PHOTOS).is_dir():
        raise _no_layout(root)
    if split is not None:
        raise UsageError(
            f"split {split} of {root}: two folders have no splits", remedy="Omit --split: it is for Pascal VOC."
        )
    return _folders(root, images or _PHOTOS, labels or _LABELS)


def _no_layout(root: Path) -> InputFileError:
    below = next((str(found.parent) for found in sorted(root.glob(f"*/{_VOC_PHOTOS}"))), None)
    remedy = f"Pass the folder that contains them, or name the two folders with --{_PHOTOS} and --{_LABELS}."
    return InputFileError(
        f"data set {root} has neither {_VOC_PHOTOS} (Pascal VOC) nor {_PHOTOS} and {_LABELS}",
        remedy=f"Did you mean {below}?" if below else remedy,
    )


def _voc(root: Path, split: str) -> Dataset:
    names = _read_split(root / _VOC_SPLITS, split)
    pairs = [Pair(name, root / _VOC_PHOTOS / f"{name}.jpg", root / _VOC_LABELS / f"{name}.png") for name in names]
    files = (file for pair in pairs for file in (pair.photo, pair.labels))
    missing = [str(file.relative_to(root)) for file in files if not file.is_file()]
    if missing:
        raise InputFileError(
            f"{len(missing)} files of split {split} are missing from {root}:{list_first(missing)}",
            remedy="Unpack the data set again, or remove these names from the split.",
        )
    return Dataset(f"Pascal VOC {root}, split {split}", tuple(pairs))


def _read_split(folder: Path, split: str) -> list[str]:
    file = folder / f"{split}.txt"
    if not file.is_file():
        known = sorted(path.stem for path in folder.glob("*.txt"))
        raise InputFileError(
            f"{folder} has no split {split}",
            remedy=f"Pass --split with one of: {', '.join(known)}." if known else "Unpack the data set again.",
        )
    try:
        names = [line.strip() for line in file.read_text(encoding="utf-8").splitlines() if line.strip()]
    except (OSError, UnicodeDecodeError) as error:
        raise InputFileError(f"split {file} cannot be read: {error}", remedy="Write one name per line.") from error
    if not names:
        raise InputFileError(f"split {file} is empty", remedy="Write one name per line, or pass another --split.")
    outside = [name for name in names if Path(name).is_absolute() or ".." in Path(name).parts]
    if outside:
        raise InputFileError(
            f"split {file} lists {outside[0]!r}, which is not below its data set",
            remedy="List names of images, without a suffix.",
        )
    _check_unique(names, f"split {file}", "List every image once.")
    return names


def _folders(root: Path, photos: str, labels: str) -> Dataset:
    for folder in (root / photos, root / labels):
        if not folder.is_dir():
            raise InputFileError(
                f"{folder} is not a folder", remedy=f"Name the two folders with --{_PHOTOS} and --{_LABELS}."
            )
    found = find_images([str(root / photos)])
    _check_unique([path.stem for path in found], f"{root / photos}", "Keep only one photo per name.")
    by_name = {path.stem: path for path in found}
    maps = {path.stem: path for path in sorted((root / labels).iterdir()) if path.suffix.lower() == ".png"}
    missing = [f"{Path(labels) / name}.png" for name in by_name if name not in maps]
    missing += [f"{Path(photos) / name}.*" for name in maps if name not in by_name]
    if missing:
        raise InputFileError(
            f"{len(missing)} files of {len(by_name.keys() | maps.keys())} pairs are missing from {root}:"
            f"{list_first(missing)}",
            remedy="A photo and its label PNG share a name: add the missing file, or remove the other.",
        )
    pairs = tuple(Pair(name, path, maps[name]) for name, path in by_name.items())
    return Dataset(f"{root}, {photos} with {labels}", pairs)


def _check_unique(names: Iterable[str], where: str, remedy: str) -> None:
    repeated = [name for name, count in Counter(names).items() if count > 1]
    if repeated:
        raise InputFileError(f"{len(repeated)} names occur twice in {where}:{list_first(repeated)}", remedy=remedy)


def list_first(items: Sequence[str]) -> str:
    """Return the first ten items, one per line, and how many more there are."""
    more = [f"and {len(items) - _LISTED} more"] if len(items) > _LISTED else []
    return "".join(f"\n  {item}" for item in [*items[:_LISTED], *more])


# Offset of the bits per sample in a PNG's header, and the modes whose samples are read unscaled.
_DEPTH_BYTE = 24
_INDEXED_MODES = ("P", "L")
_REMEDY = "Save it as a palette PNG (mode P) whose pixel values are the labels."


def decode_truth(data: bytes, name: str, size: tuple[int, int], num_classes: int) -> Labels:
    """Decode a label PNG from memory to H x W uint8, unscaled: 0..K-1, and 255 for void; `size` is its photo's H, W.

    Raises:
        InputFileError: it is not a PNG or is damaged; it has colours, 16 bits or scaled grey levels instead of
            labels; its size differs from the photo's; or a value is neither a class nor void.
    """
    try:
        # The size is compared with the photo's before anything is decoded.
        with open_picture(data, ["PNG"]) as image:
            _check_kind(image, name, data[_DEPTH_BYTE])
            _check_size(image, name, size)
            labels = np.array(image)
    except UnidentifiedImageError as error:
        raise InputFileError(f"labels {name} ({len(data)} bytes) are not a PNG", remedy=_REMEDY) from error
    except FcnDeployError:
        raise
    except Exception as error:  # decoders raise many kinds of errors for damaged files
        raise InputFileError(f"labels {name} are truncated or damaged: {error}", remedy="Copy them again.") from error
    _check_values(labels, name, num_classes)
    return labels


def _check_kind(image: Image.Image, name: str, depth: int) -> None:
    if image.mode in _INDEXED_MODES and (image.mode == "P" or depth == 8):
        if getattr(image, "n_frames", 1) > 1:
            raise InputFileError(f"labels {name} are an animation", remedy="Save the frame you want as a PNG.")
        return
    if image.mode in ("RGB", "RGBA"):
        raise InputFileError(
            f"labels {name} have mode {image.mode}: colours do not identify labels without a palette",
            remedy=f"{_REMEDY} For Pascal VOC, use SegmentationClass as published.",
        )
    raise InputFileError(
        f"labels {name} have mode {image.mode} with {depth} bits; labels must be 8-bit", remedy=_REMEDY
    )


def _check_size(image: Image.Image, name: str, size: tuple[int, int]) -> None:
    height, width = size
    if (image.height, image.width) != size:
        raise InputFileError(
            f"labels {name} are {image.width}x{image.height} pixels, their photo is {width}x{height}",
            remedy="Save them in the size of the upright photo: its EXIF rotation is applied.",
        )


def _check_values(labels: Labels, name: str, num_classes: int) -> None:
    unknown = labels[(labels >= num_classes) & (labels != VOID_LABEL)]
    if unknown.size:
        values = np.unique(unknown)
        shown = f"value{'s' if values.size > 1 else ''} {', '.join(map(str, values[:5]))}{', ...' * (values.size > 5)}"
        raise InputFileError(
            f"labels {name} have {shown} in {unknown.size} pixels; the model has {num_classes} classes, "
            f"0 to {num_classes - 1}, and {VOID_LABEL} is void",
            remedy="Map them to the model's classes, and unknown classes to void.",
        )


@dataclass(frozen=True)
class Failure:
    """An image that has no score."""

    name: str  # name of its pair
    error: FcnDeployError  # the problem with the photo or its labels


@dataclass(frozen=True)
class Files:
    """The contents of the two files of a pair."""

    pair: Pair  # their paths
    photo: bytes  # the photo's bytes
    labels: bytes  # the label map's bytes

    @cached_property
    def sha256(self) -> tuple[str, str]:
        """Hashes of the photo and of the labels, in hex."""
        return hashlib.sha256(self.photo).hexdigest(), hashlib.sha256(self.labels).hexdigest()

    def decode(self, num_classes: int) -> tuple[Pixels, Labels]:
        """Decode the H x W x 3 uint8 RGB photo and the H x W uint8 truth; raises InputFileError if one is unusable."""
        photo = decode_image(self.photo, str(self.pair.photo))
        height, width = photo.shape[:2]
        return photo, decode_truth(self.labels, str(self.pair.labels), (height, width), num_classes)


def read_files(pair: Pair) -> Files:
    """Read both files of a pair; raises ImageError if one of them cannot be read."""
    return Files(pair, read_file(pair.photo, str(pair.photo)), read_file(pair.labels, str(pair.labels)))
