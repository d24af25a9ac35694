"""Bundles in reduced precision, of the trained sample: their check, their record, and the error when it fails."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

import fcn_deploy as fd
from benchmarks.train_sample import CLASSES, Split, write_scenes
from fcn_deploy.artifact.bundle import open_bundle
from fcn_deploy.parity.compare import Comparison
from tests.conftest import Once, narrow_options
from tests.messages import missing, states

SIZE = 224


@pytest.fixture(scope="session")
def scenes(once: Once) -> Path:
    return once("scenes", lambda folder: write_scenes(folder / "calibration", Split.TRAINING, 6, SIZE)) / "calibration"


def options(output: Path, precision: fd.PrecisionOptions, checkpoint: Path = fd.SAMPLE_CHECKPOINT) -> fd.ExportOptions:
    onnx = fd.OnnxOptions(SIZE, SIZE, opset=fd.default_opset(precision.precision))
    weights = fd.WeightsOptions(checkpoint)
    return fd.ExportOptions(fd.Variant.FCN8S, output, weights=weights, onnx=onnx, precision=precision)


@pytest.mark.parametrize(
    ("precision", "least", "most"), [(fd.Precision.FP16, 1e-4, 5e-3), (fd.Precision.BF16, 1e-3, 3e-2)]
)
def test_half_precision_passes_its_gate(tmp_path: Path, precision: fd.Precision, least: float, most: float) -> None:
    result = fd.export(options(tmp_path / "out", fd.PrecisionOptions(precision)))

    assert isinstance(result.reduction, fd.HalfReport)
    assert result.parity is not None
    assert result.parity.tier.name == precision
    errors = [c.relative_error for c in result.parity.comparisons if isinstance(c, Comparison)]
    # Rounded to 11 or 8 bits: far from float32's 1e-6, within the tier.
    assert len(errors) == 2
    assert all(least < error < most for error in errors)
    parameters = sum(t.numel() for t in load_file(fd.SAMPLE_CHECKPOINT).values())
    assert 2 * parameters < result.file_bytes < 2.1 * parameters + 100_000
    bundle = open_bundle(tmp_path / "out")
    assert bundle.info.precision is precision
    assert bundle.info.class_names == CLASSES
    assert bundle.photos == ()


def test_int8_passes_its_gate_on_what_it_was_calibrated_for(tmp_path: Path, scenes: Path) -> None:
    result = fd.export(options(tmp_path / "out", fd.PrecisionOptions(fd.Precision.INT8, (scenes,))))

    assert isinstance(result.reduction, fd.Quantization)
    assert result.reduction.mean_iu >= 0.95
    assert result.parity is not None
    assert (result.parity.tier.name, result.parity.tier.mean_iu) == ("int8", 0.95)
    bundle = open_bundle(tmp_path / "out")
    assert bundle.info.min_agreement == 0.95
    assert [path.name for path in bundle.photos] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    manifest = json.loads((tmp_path / "out/manifest.json").read_text())
    assert manifest["reduction"]["images"] == 6
    assert len(manifest["reduction"]["layers"]) == 15
    verified = fd.verify(tmp_path / "out", fd.VerifyOptions(fd.SAMPLE_CHECKPOINT))
    assert [c.input_name for c in verified.parity.comparisons] == ["0.jpg", "1.jpg", "2.jpg", "3.jpg"]
    assert verified.parity.passed
    assert [c.mean_iu for c in verified.parity.comparisons] == [c.mean_iu for c in result.parity.comparisons]


def test_a_photo_of_an_int8_bundle_that_was_exchanged_is_found(tmp_path: Path, scenes: Path) -> None:
    narrow = replace(narrow_options(tmp_path / "out"), optimize=fd.Optimize.SIMPLIFY, verify=False)
    fd.export(replace(narrow, precision=fd.PrecisionOptions(fd.Precision.INT8, (scenes,))))
    assert open_bundle(tmp_path / "out").photos
    (tmp_path / "out/calibration/1.jpg").write_bytes((tmp_path / "out/calibration/2.jpg").read_bytes())

    with pytest.raises(fd.BundleError, check=states("1.jpg manifest.json")):
        open_bundle(tmp_path / "out")


@pytest.mark.parametrize("variant", fd.Variant)
def test_pixels_in_and_labels_out_in_half_precision(tmp_path: Path, variant: fd.Variant) -> None:
    narrow = narrow_options(tmp_path / "out", variant)
    ends = replace(narrow, image_input=fd.ImageInput.UINT8, head=fd.Head.LABELS)

    result = fd.export(replace(ends, precision=fd.PrecisionOptions(fd.Precision.FP16), verify=False))

    graph = open_bundle(result.path).model.graph
    assert [(v.name, str(v.dtype)) for v in (*graph.inputs, *graph.outputs)] == [
        ("pixels", "UINT8"),
        ("labels", "UINT8"),
    ]
    found = fd.verify(result.path).parity.comparisons
    assert all(c.severity < 5e-3 for c in found)


def test_where_noise_misleads_the_layers_that_cost_most_labels_stay_in_float(tmp_path: Path) -> None:
    """Large scenes made small: their thin shapes hang on the first layers, which round best."""
    photos = write_scenes(tmp_path / "photos", Split.TRAINING, 6, 500)
    precision = fd.PrecisionOptions(fd.Precision.INT8, (photos,))

    found = fd.export(replace(options(tmp_path / "out", precision), optimize=fd.Optimize.NONE)).reduction

    assert isinstance(found, fd.Quantization)
    assert found.mean_iu >= 0.95
    first = found.layers[0]
    assert first.name == "conv1_1"
    assert first.sqnr_db == max(layer.sqnr_db for layer in found.layers)
    assert first.in_float
    assert not all(layer.in_float for layer in found.layers)


def test_int8_of_random_weights_is_judged_by_its_error(tmp_path: Path, scenes: Path) -> None:
    precision = fd.PrecisionOptions(fd.Precision.INT8, (scenes,))

    result = fd.export(replace(narrow_options(tmp_path / "out", size=SIZE), precision=precision))

    assert result.parity is not None
    assert result.parity.tier.name == "int8, random weights"
    assert isinstance(result.reduction, fd.Quantization)
    assert not any(layer.in_float for layer in result.reduction.layers)


def scaled_sample(path: Path, factor: float) -> Path:
    """The sample with conv2_1 made larger and conv2_2 smaller by the same factor: the same in exact arithmetic."""
    state = load_file(fd.SAMPLE_CHECKPOINT)
    for name in ("conv2_1.weight", "conv2_1.bias"):
        state[name] = state[name].float() * factor
    state["conv2_2.weight"] = state["conv2_2.weight"].float() / factor
    save_file(state, path, metadata={"class_names": " ".join(CLASSES)})
    return path


def test_a_map_beyond_float16_is_rescaled_and_the_gate_passes(tmp_path: Path) -> None:
    checkpoint = scaled_sample(tmp_path / "large.safetensors", 2.0**12)

    result = fd.export(options(tmp_path / "out", fd.PrecisionOptions(fd.Precision.FP16), checkpoint))

    assert isinstance(result.reduction, fd.HalfReport)
    assert result.reduction.largest > 65504
    assert list(result.reduction.rescaled) == ["conv2_1"]
    assert np.log2(result.reduction.rescaled["conv2_1"]) % 1 == 0
    layers = fd.verify(result.path, fd.VerifyOptions(checkpoint, layers=True)).layers
    assert layers is not None
    assert {"relu2_1", "relu2_2"} <= {layer.name for layer in layers.layers}
    assert layers.first_wrong is None


def test_a_gate_that_fails_names_the_worst_input_and_a_layer(tmp_path: Path) -> None:
    """Weights below 2^-14 are subnormal in float16, and lose most of their digits."""
    state = load_file(fd.SAMPLE_CHECKPOINT)
    state["conv4_2.weight"], state["conv4_2.bias"] = (
        state[f"conv4_2.{n}"].float() * 2.0**-17 for n in ("weight", "bias")
    )
    state["conv4_3.weight"] = state["conv4_3.weight"].float() * 2.0**17
    save_file(state, tmp_path / "tiny.safetensors")

    with pytest.raises(fd.FcnDeployError) as caught:
        fd.export(options(tmp_path / "out", fd.PrecisionOptions(fd.Precision.FP16), tmp_path / "tiny.safetensors"))

    assert caught.value.exit_code == 5
    assert missing("fp16 relu4_2 0.005", caught.value.problem) == []
    assert "verify --layers" in caught.value.remedy
    assert not (tmp_path / "out").exists()


def test_a_checkpoint_says_how_wide_it_is_and_what_its_classes_are(tmp_path: Path) -> None:
    made = fd.export(replace(options(tmp_path / "out", fd.PrecisionOptions()), verify=False))

    assert made.info.network == fd.NetworkSpec(fd.Variant.FCN8S, fd.Geometry.CAFFE, 7, 8)
    assert made.info.class_names == CLASSES


def test_names_of_other_classes_than_those_scored_are_refused(tmp_path: Path) -> None:
    state = {name: torch.as_tensor(tensor) for name, tensor in load_file(fd.SAMPLE_CHECKPOINT).items()}
    save_file(state, tmp_path / "six.safetensors", metadata={"class_names": "a b c d e f"})

    with pytest.raises(fd.CheckpointError, check=states("six.safetensors 6 classes 7")):
        fd.read_checkpoint(tmp_path / "six.safetensors")


def test_the_sample_fits_the_wheel() -> None:
    assert fd.SAMPLE_CHECKPOINT.stat().st_size <= 5_000_000
