import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from PIL import Image

import fcn_deploy as fd
from fcn_deploy.models.weights import random_network
from tests.conftest import narrow_options
from tests.messages import states

HARD = ["mean colour", "extremes", "edges", "checkerboard", "zeros"]


def names(result: fd.Verification) -> list[str]:
    return [c.input_name for c in result.parity.comparisons]


def test_all_inputs_in_one_run(shared_bundle: Path) -> None:
    result = fd.verify(shared_bundle)

    assert names(result) == ["astronaut.jpg", "noise 0", *HARD]
    assert result.parity.passed
    assert all(c.severity < 2e-6 and c.flips == 0 for c in result.parity.comparisons)
    assert result.worst_input is None


def test_photos_samples_and_a_bare_file(shared_bundle: Path, photo: Path) -> None:
    result = fd.verify(shared_bundle / "model.onnx", fd.VerifyOptions(images=(photo,), samples=3))

    assert names(result) == ["photo.png", "noise 0", "noise 1", "noise 2", *HARD]
    assert result.parity.passed


def test_exact_measures_both_sides_against_float64(shared_bundle: Path) -> None:
    result = fd.verify(shared_bundle, fd.VerifyOptions(exact=True))

    assert [e.input_name for e in result.parity.exact] == names(result)
    for errors, compared in zip(result.parity.exact, result.parity.comparisons, strict=True):
        assert 0 < errors.reference < 2e-6
        assert 0 < errors.candidate < 2e-6
        assert compared.severity <= 1.01 * (errors.reference + errors.candidate)


@pytest.fixture
def damaged(shared_bundle: Path, tmp_path: Path) -> Path:
    """The bundle's model with one weight of the last layer changed."""
    model = onnx.load(shared_bundle / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "upscore8/convolve/weight")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[3 * 8 * 8, 3, 1, 1] += 0.5  # class 3, the first of 8 x 8 remainders
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "damaged.onnx")
    return tmp_path / "damaged.onnx"


def test_a_wrong_weight_is_found_and_its_worst_input_replayed(damaged: Path) -> None:
    result = fd.verify(damaged)

    assert not result.parity.passed
    assert result.worst_input == damaged.parent / "worst-input.npy"
    replayed = fd.verify(damaged, fd.VerifyOptions(images=(result.worst_input,)))
    figures = replayed.parity.comparisons[0], result.parity.worst
    assert figures[0] == replace(figures[1], input_name="worst-input.npy")


def test_the_worst_input_is_saved_where_asked_even_when_all_is_well(shared_bundle: Path, tmp_path: Path) -> None:
    result = fd.verify(shared_bundle, fd.VerifyOptions(save_worst=tmp_path / "deep" / "worst.npy"))

    assert result.worst_input == tmp_path / "deep" / "worst.npy"
    assert np.load(result.worst_input).shape == (1, 3, 96, 96)


def test_a_crop_shifted_by_one_pixel_is_found(shared_bundle: Path, tmp_path: Path) -> None:
    model = onnx.load(shared_bundle / "model.onnx")
    last = next(node for node in model.graph.node if node.output[0] == "logits")
    for tensor in model.graph.initializer:
        if tensor.name in last.input[1:3]:
            tensor.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(tensor) + 1, tensor.name))
    onnx.save(model, tmp_path / "shifted.onnx")

    assert not fd.verify(tmp_path / "shifted.onnx").parity.passed


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    """A bundle exported from a checkpoint, and the checkpoint."""
    spec = fd.NetworkSpec(fd.Variant.FCN32S, channel_divisor=16)
    checkpoint = tmp_path / "weights.pth"
    torch.save(random_network(spec, 9).state_dict(), checkpoint)
    options = narrow_options(tmp_path / "trained", fd.Variant.FCN32S)
    return fd.export(replace(options, weights=fd.WeightsOptions(checkpoint))).path, checkpoint


def test_a_bundle_from_a_checkpoint_is_proven_against_it(trained: tuple[Path, Path]) -> None:
    bundle, checkpoint = trained

    assert fd.verify(bundle, fd.VerifyOptions(checkpoint)).parity.passed


def test_its_checkpoint_has_to_be_given(trained: tuple[Path, Path]) -> None:
    with pytest.raises(fd.CheckpointError, check=states("artifact checkpoint SHA-256", remedy="--checkpoint")):
        fd.verify(trained[0])


def test_another_checkpoint_is_refused(trained: tuple[Path, Path], tmp_path: Path) -> None:
    other = tmp_path / "other.pth"
    torch.save(random_network(fd.NetworkSpec(fd.Variant.FCN32S, channel_divisor=16), 8).state_dict(), other)

    with pytest.raises(fd.CheckpointError, check=states("other.pth SHA-256 exported")):
        fd.verify(trained[0], fd.VerifyOptions(other))


def test_a_checkpoint_for_random_weights_is_a_misunderstanding(shared_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(fd.UsageError, check=states("artifact exported without checkpoint")):
        fd.verify(shared_bundle, fd.VerifyOptions(tmp_path / "weights.pth"))


@pytest.mark.parametrize("samples", [0, 65])
def test_samples_out_of_bounds(samples: int) -> None:
    with pytest.raises(fd.UsageError, check=states(f"{samples} 1 64")):
        fd.VerifyOptions(samples=samples)


def test_a_worst_input_that_could_not_be_replayed() -> None:
    with pytest.raises(fd.UsageError, match=r"worst\.bin .*\.npy"):
        fd.VerifyOptions(save_worst=Path("worst.bin"))


def test_photos_of_one_name_are_told_apart(damaged: Path, photo: Path) -> None:
    blank = damaged.parent / "other" / photo.name
    blank.parent.mkdir()
    Image.new("RGB", (8, 8)).save(blank)

    result = fd.verify(damaged, fd.VerifyOptions(images=(blank, photo, blank), save_worst=damaged.parent / "w.npy"))

    assert names(result)[:3] == [str(blank), str(photo), "noise 0"]
    worst = names(result).index(result.parity.worst.input_name)
    replayed = fd.verify(damaged, fd.VerifyOptions(images=(damaged.parent / "w.npy",)))
    assert replayed.parity.comparisons[0].severity == result.parity.comparisons[worst].severity


def test_the_verdict_survives_a_place_that_takes_no_file(damaged: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def unwritable(*_: object) -> None:
        raise fd.OutputError("cannot write", remedy="none")

    monkeypatch.setattr("fcn_deploy.parity.verify.staged_file", unwritable)

    result = fd.verify(damaged)

    assert not result.parity.passed
    assert result.worst_input is None


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_values_that_are_not_finite_fail_and_reach_json(shared_bundle: Path, tmp_path: Path, value: float) -> None:
    model = onnx.load(shared_bundle / "model.onnx")
    weight = next(t for t in model.graph.initializer if t.name == "score_fr.bias")
    values = onnx.numpy_helper.to_array(weight).copy()
    values[0] = value
    weight.CopyFrom(onnx.numpy_helper.from_array(values, weight.name))
    onnx.save(model, tmp_path / "odd.onnx")

    result = fd.verify(tmp_path / "odd.onnx")

    assert not result.parity.passed
    assert json.loads(json.dumps(result.to_dict(), allow_nan=False))["parity"]["passed"] is False


@pytest.mark.parametrize(("name", "options", "error"), [
    ("nothing.plan", {"layers": True}, fd.UsageError),
    ("nothing.plan", {"provider": fd.Provider.CUDA}, fd.UsageError),
    ("nothing", {"provider": fd.Provider.CUDA}, fd.ProviderError),
    ("nothing", {"layers": True}, fd.BundleError),
    ("nothing.plan", {}, fd.BundleError),
])  # fmt: skip
def test_refusals_that_need_no_artifact_come_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, options: dict[str, Any], error: type[Exception]
) -> None:
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CPUExecutionProvider"])
    with pytest.raises(error, match="cuda|CUDA" if error is fd.ProviderError else "nothing"):
        fd.verify(tmp_path / name, fd.VerifyOptions(**options))


def test_a_missing_photo(shared_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(fd.ImageError, check=states("none.png file")):
        fd.verify(shared_bundle, fd.VerifyOptions(images=(tmp_path / "none.png",)))
