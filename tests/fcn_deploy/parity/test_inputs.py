from pathlib import Path

import numpy as np
import pytest

from fcn_deploy import ImageError
from fcn_deploy.images import SAMPLE_PHOTO
from fcn_deploy.parity.inputs import hard_inputs, noise_input, photo_input
from fcn_deploy.preprocessing import Preprocessing
from tests.messages import states

SHAPE = (2, 3, 48, 64)
LOW, HIGH = -122.67891434, 255 - 104.00698793


def test_every_input_has_the_shape_and_stays_in_the_range_of_real_images() -> None:
    inputs = [photo_input(SAMPLE_PHOTO, SHAPE), noise_input(0, SHAPE), *hard_inputs(SHAPE)]

    assert [i.name for i in inputs] == [
        "astronaut.jpg", "noise 0", "mean colour", "extremes", "edges", "checkerboard", "zeros",
    ]  # fmt: skip
    assert Preprocessing().bounds == (LOW, HIGH)
    for given in inputs:
        assert given.image.shape == SHAPE
        assert given.image.dtype == np.float32
        assert given.image.min() >= LOW - 1e-4
        assert given.image.max() <= HIGH + 1e-4


def test_each_is_what_its_name_says() -> None:
    by_name = {i.name: i.image for i in hard_inputs(SHAPE)}

    assert np.abs(by_name["mean colour"]).max() < 0.5
    assert not by_name["zeros"].any()
    assert np.unique(by_name["extremes"][:, 0]) == pytest.approx([-104.00698793, HIGH])
    board = by_name["checkerboard"][0, 0]
    assert (board[:, 1:] != board[:, :-1]).all()
    assert (board[1:] != board[:-1]).all()
    assert np.unique(by_name["edges"][0].reshape(3, -1), axis=1).shape[1] == 3


def test_noise_depends_on_its_seed_alone() -> None:
    assert np.array_equal(noise_input(1, SHAPE).image, noise_input(1, SHAPE).image)
    assert not np.array_equal(noise_input(1, SHAPE).image, noise_input(2, SHAPE).image)


@pytest.mark.parametrize("name", ["photo", "noise", "extremes", "edges", "checkerboard"])
def test_the_images_of_a_batch_differ(name: str) -> None:
    inputs = {"photo": photo_input(SAMPLE_PHOTO, SHAPE), "noise": noise_input(0, SHAPE)}
    inputs |= {i.name: i for i in hard_inputs(SHAPE)}

    assert not np.array_equal(*inputs[name].image)


def test_a_saved_input_is_replayed(tmp_path: Path) -> None:
    saved = noise_input(5, SHAPE).image
    np.save(tmp_path / "worst.npy", saved)

    assert np.array_equal(photo_input(tmp_path / "worst.npy", SHAPE).image, saved)


def test_other_saved_arrays_are_refused(tmp_path: Path) -> None:
    np.save(tmp_path / "small.npy", np.zeros((1, 3, 4, 4), np.float32))
    np.save(tmp_path / "objects.npy", np.array([{}], dtype=object))
    (tmp_path / "text.npy").write_text("text")

    for name, facts in (
        ("small.npy", "float32 takes 48 64"), ("objects.npy", "read Object"), ("text.npy", "read pickled"),
        ("none.npy", "read No such"),
    ):  # fmt: skip
        with pytest.raises(ImageError, check=states(f"{name} {facts}")):
            photo_input(tmp_path / name, SHAPE)
