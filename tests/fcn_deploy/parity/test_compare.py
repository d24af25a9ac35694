import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from fcn_deploy import ParityError
from fcn_deploy.parity.compare import compare_labels, compare_logits, compare_outputs

RNG = np.random.default_rng(0)


def logits(*shape: int) -> np.ndarray:
    return RNG.normal(0, 10, shape).astype(np.float32)


def test_equal_maps() -> None:
    maps = logits(2, 5, 8, 9)

    found = compare_logits("x", maps, maps.copy())

    assert (found.max_abs_error, found.relative_error, found.flips, found.largest_flip_margin) == (0, 0, 0, 0)
    assert (found.label_agreement, found.mean_iu, found.passing_tolerance) == (1, 1, 0)
    assert found.cosine == pytest.approx(1)
    assert found.snr_db == float("inf")


def test_a_worked_example() -> None:
    """One image, two classes, four pixels; pixel 1 flips at a margin of 0.1, pixel 3 at a margin of 6."""
    reference = np.array([[[[4.0, 1.1, 0.0, -2.0]], [[0.0, 1.0, 3.0, 4.0]]]], dtype=np.float32)
    candidate = reference.copy()
    candidate[0, 0, 0, 1] -= 0.5
    candidate[0, 0, 0, 3] += 7.0

    found = compare_logits("x", reference, candidate)

    assert found.logit_range == 6
    assert found.max_abs_error == 7
    assert found.mean_abs_error == pytest.approx(7.5 / 8)
    assert found.relative_error == pytest.approx(7 / 6)
    assert found.error_norm == pytest.approx(np.sqrt(0.25 + 49))
    assert found.relative_l2 == pytest.approx(np.sqrt(49.25 / (16 + 1.21 + 4 + 1 + 9 + 16)))
    assert (found.pixels, found.flips, found.clear_flips) == (4, 2, 2)
    assert found.largest_flip_margin == pytest.approx(6)
    assert found.label_agreement == 0.5
    # Labels 0 0 1 1 become 0 1 1 0: one hit of three for either class.
    assert (found.intersections, found.unions) == ((1, 1), (3, 3))
    assert found.mean_iu == pytest.approx(1 / 3)


def test_a_tie_that_flips_is_not_a_clear_flip() -> None:
    reference = np.zeros((1, 2, 1, 3), dtype=np.float32)
    reference[0, 0] = [[100.0, 0.0005, 0.0]]
    candidate = reference.copy()
    candidate[0, 1, 0, 1] = 0.001

    found = compare_logits("x", reference, candidate)

    assert (found.flips, found.clear_flips) == (1, 0)
    assert found.largest_flip_margin == pytest.approx(0.0005)


@given(st.floats(1e-9, 1e3))
def test_the_passing_tolerance_just_passes(error: float) -> None:
    reference = np.array([[[[0.0, 1.0]], [[0.5, 0.5]]]])
    found = compare_logits("x", reference, reference + error)

    assert found.relative_error <= found.passing_tolerance * (1 + 1e-12)
    assert found.passing_tolerance <= found.relative_error * 1.1


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_never_look_equal(value: float) -> None:
    reference = logits(1, 3, 4, 4)
    candidate = reference.copy()
    candidate[0, 1, 2, 3] = value

    with np.errstate(invalid="ignore"):
        assert not compare_logits("x", reference, candidate).relative_error <= 1


def test_a_constant_reference() -> None:
    flat = np.full((1, 2, 2, 2), 3.0)

    assert compare_logits("x", flat, flat).relative_error == 0
    assert compare_logits("x", flat, flat + 1).relative_error == float("inf")


@pytest.mark.parametrize(("reference", "candidate", "message"), [
    ({"logits": logits(1, 2, 3, 3)}, {"scores": logits(1, 2, 3, 3)}, "outputs.*logits.*scores"),
    ({"logits": logits(1, 2, 3, 3)}, {"logits": logits(1, 2, 3, 4)}, r"logits.*3, 3\).*3, 4\)"),
    ({"logits": logits(1, 2, 3, 3)}, {"logits": np.zeros((1, 2, 3, 3), int)}, "logits.*float32.*int64"),
])  # fmt: skip
def test_names_then_shapes_then_types(
    reference: dict[str, np.ndarray], candidate: dict[str, np.ndarray], message: str
) -> None:
    with pytest.raises(ParityError, match=message):
        compare_outputs("x", reference, candidate)


def test_a_label_that_is_no_class_is_named() -> None:
    """As of a runtime that leaves its output unwritten."""
    labels = np.zeros((1, 3, 3), np.uint8)
    labels[0, 1, 2] = 248

    with pytest.raises(ParityError) as caught:
        compare_labels("x", logits(1, 21, 3, 3), labels)

    assert "largest label" in caught.value.problem
    assert "248" in caught.value.problem
    assert "at most 20" in caught.value.problem


def test_every_figure_reaches_the_dictionary() -> None:
    figures = compare_logits("x", logits(1, 2, 3, 3), logits(1, 2, 3, 3)).to_dict()

    assert set(figures) == {
        "input_name", "max_abs_error", "mean_abs_error", "logit_range", "error_norm", "reference_norm",
        "candidate_norm", "dot", "pixels", "flips", "clear_flips", "largest_flip_margin", "mean_iu",
        "intersections", "unions",
        "relative_error", "relative_l2", "cosine", "snr_db", "label_agreement", "passing_tolerance",
    }  # fmt: skip
