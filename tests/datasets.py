"""Small data sets on disk: photos of noise in blocks, and label maps with void, some classes absent."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

NUM_CLASSES = 21
VOID = 255


def photo_of(seed: int, height: int, width: int) -> np.ndarray:
    blocks = np.random.default_rng(seed).integers(0, 256, (5, 7, 3), dtype=np.uint8)
    return np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.BILINEAR))


def truth_of(seed: int, height: int, width: int, classes: int = NUM_CLASSES) -> np.ndarray:
    """Labels in blocks, of a random half of the classes, and void."""
    rng = np.random.default_rng([seed, 1])
    known = rng.choice(classes, max(1, classes // 2), replace=False)
    blocks = rng.choice(np.append(known, VOID), (6, 5)).astype(np.uint8)
    return np.array(Image.fromarray(blocks).resize((width, height), Image.Resampling.NEAREST))


def save_labels(labels: np.ndarray, path: Path) -> None:
    """As Pascal VOC has them: a palette PNG."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(labels.astype(np.uint8))
    image.putpalette([value for k in range(256) for value in (k, 255 - k, 7 * k % 256)])
    image.save(path)


def save_photo(pixels: np.ndarray, path: Path, **options: Any) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path, **options)


def make_folders(root: Path, count: int, size: tuple[int, int] = (40, 56)) -> Path:
    """`root`/images and `root`/labels; every photo is two pixels higher than the one before."""
    for i in range(count):
        height, width = size[0] + 2 * i, size[1]
        save_photo(photo_of(i, height, width), root / "images" / f"{i:03}.png")
        save_labels(truth_of(i, height, width), root / "labels" / f"{i:03}.png")
    return root


def make_voc(root: Path, splits: dict[str, Sequence[str]]) -> Path:
    """Pascal VOC's layout with JPEG photos."""
    for seed, name in enumerate(sorted({name for names in splits.values() for name in names})):
        save_photo(photo_of(seed, 40, 56), root / "JPEGImages" / f"{name}.jpg")
        save_labels(truth_of(seed, 40, 56), root / "SegmentationClass" / f"{name}.png")
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    for split, names in splits.items():
        (lists / f"{split}.txt").write_text("".join(f"{name}\n" for name in names))
    return root
