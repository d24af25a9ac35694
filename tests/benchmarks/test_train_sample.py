"""Procedural scenes: the same for the same seed, and told apart by shape."""

import numpy as np
import pytest
from PIL import Image, ImageDraw

from benchmarks import train_sample
from benchmarks.train_sample import CLASSES, DIAMETERS, Split, outlines, scene

SPLITS = pytest.mark.parametrize("split", list(Split))


@SPLITS
def test_the_same_seed_makes_the_same_scene(split: Split) -> None:
    one, other, third = (scene(split, seed, 96, 128) for seed in (3, 3, 4))

    np.testing.assert_array_equal(one.pixels, other.pixels)
    np.testing.assert_array_equal(one.labels, other.labels)
    assert (one.pixels != third.pixels).any()


@SPLITS
def test_shapes_types_and_ranges(split: Split) -> None:
    made = [scene(split, seed, 96, 128) for seed in range(6)]

    assert {(s.pixels.shape, s.pixels.dtype.name) for s in made} == {((96, 128, 3), "uint8")}
    assert {(s.labels.shape, s.labels.dtype.name) for s in made} == {((96, 128), "uint8")}
    assert max(int(s.labels.max()) for s in made) < len(CLASSES)
    assert all(np.ptp(s.pixels) > 50 for s in made)


@SPLITS
def test_every_class_occurs(split: Split) -> None:
    labels = np.concatenate([scene(split, seed, 160, 160).labels.ravel() for seed in range(20)])

    shares = np.bincount(labels, minlength=len(CLASSES)) / labels.size

    assert (shares > 0.002).all()
    assert 0.3 < shares[0] < 0.95


def test_the_two_splits_have_no_scene_and_no_photo_in_common() -> None:
    training, held_out = (train_sample._photos(split) for split in Split)

    assert all(a.shape != b.shape or (a != b).any() for a in training for b in held_out)
    assert (scene(Split.TRAINING, 0, 224, 224).labels != scene(Split.HELD_OUT, 0, 224, 224).labels).any()


def test_larger_scenes_hold_more_shapes_and_no_larger_ones() -> None:
    """A disc of the largest diameter covers the same number of pixels in a scene of any size."""
    most = np.pi / 4 * (DIAMETERS[1] * 1.25) ** 2
    shares = {}
    for side in (224, 448):
        made = [scene(Split.TRAINING, seed, side, side).labels for seed in range(8)]
        shares[side] = float(np.mean([(labels > 0).mean() for labels in made]))
        assert max(int((labels > 0).sum()) for labels in made) < most * 5 * side / 224

    assert shares[448] < shares[224]


def drawn(kind: str, side: int = 200) -> np.ndarray:
    canvas = Image.new("L", (side, side))
    for points, fill in outlines(kind):
        ImageDraw.Draw(canvas).polygon([((x + 1) * side / 2, (y + 1) * side / 2) for x, y in points], fill=fill)
    return np.asarray(canvas) > 127


# Areas by geometry: sectors of a polygon, two discs of a ring, two bars of a cross less what they share.
@pytest.mark.parametrize(("kind", "area"), [
    ("disc", np.pi),
    ("square", 2.0),
    ("triangle", 3 * 3**0.5 / 4),
    ("star", 10 * 0.5 * 0.42 * np.sin(np.pi / 5)),
    ("ring", np.pi * (1 - 0.55**2)),
    ("cross", 2 * 2 * 0.66 - 0.66**2),
])  # fmt: skip
def test_an_outline_encloses_the_area_of_its_shape(kind: str, area: float) -> None:
    assert drawn(kind).mean() * 4 == pytest.approx(area, rel=0.03)


def test_no_two_classes_look_alike() -> None:
    masks = [drawn(kind) for kind in CLASSES[1:]]

    overlaps = [(a & b).sum() / (a | b).sum() for i, a in enumerate(masks) for b in masks[i + 1 :]]

    assert max(overlaps) < 0.8


@pytest.mark.parametrize("kind", CLASSES[1:])
def test_outlines_lie_within_their_radius(kind: str) -> None:
    points = np.array([point for polygon, _ in outlines(kind) for point in polygon])

    assert np.hypot(*points.T).max() <= (1.06 if kind == "cross" else 1 + 1e-9)
