import numpy as np
import pytest

from fcn_deploy import ModelInfo, NetworkSpec, Provenance, Variant
from fcn_deploy.images import OPACITY, class_shares, overlay

UNTRAINED = ModelInfo(NetworkSpec(Variant.FCN8S), Provenance(rng_seed=0))
TRAINED = ModelInfo(NetworkSpec(Variant.FCN8S), Provenance(checkpoint_sha256="0" * 64, family="Caffe"))
NOTE_COLOUR = (170, 30, 30)


def test_shares_are_sorted_and_sum_to_one() -> None:
    labels = np.array([[0, 15, 15, 15], [0, 15, 8, 15]], dtype=np.uint8)

    assert class_shares(labels) == [(15, 0.625), (0, 0.25), (8, 0.125)]


def test_pixels_are_blended_and_the_legend_lies_beside_them() -> None:
    image = np.full((400, 500, 3), 100, dtype=np.uint8)
    labels = np.zeros((400, 500), dtype=np.uint8)
    labels[:, 250:] = 15

    picture = np.asarray(overlay(image, labels, TRAINED))

    blend = np.rint(100 * (1 - OPACITY) + np.array(TRAINED.palette[15]) * OPACITY)
    assert picture.shape[0] == 400
    assert picture.shape[1] > 600
    # Pillow blends in its own integers: one step of rounding.
    assert np.abs(picture[:, :250] - 100.0 * (1 - OPACITY)).max() <= 1
    assert np.abs(picture[:, 250:500] - blend).max() <= 1
    legend = picture[:, 500:].reshape(-1, 3)
    for label in (0, 15):
        assert (legend == TRAINED.palette[label]).all(axis=1).any()


@pytest.mark.parametrize(("info", "warned"), [(UNTRAINED, True), (TRAINED, False)])
def test_only_untrained_weights_carry_a_warning(info: ModelInfo, warned: bool) -> None:
    picture = np.asarray(overlay(np.zeros((400, 400, 3), np.uint8), np.zeros((400, 400), np.uint8), info))

    assert (picture == NOTE_COLOUR).all(axis=2).any() == warned


@pytest.mark.parametrize("size", [(1, 1), (3, 900), (900, 3), (40, 30)])
def test_any_size_and_all_classes(size: tuple[int, int]) -> None:
    labels = (np.arange(size[0] * size[1]) % 21).reshape(size).astype(np.uint8)

    picture = overlay(np.zeros((*size, 3), np.uint8), labels, UNTRAINED)

    assert size[1] < picture.width < 2000
    assert size[0] <= picture.height < 2000


def test_a_photo_of_one_column_gets_no_legend() -> None:
    """A legend beside it would have hundreds of times its pixels: 14 GB for 59 million."""
    photo, labels = np.zeros((2_000_000, 1, 3), np.uint8), np.zeros((2_000_000, 1), np.uint8)

    assert overlay(photo, labels, TRAINED).size == (1, 2_000_000)
    assert overlay(photo[:3000], labels[:3000], TRAINED).size > (1, 3000)
