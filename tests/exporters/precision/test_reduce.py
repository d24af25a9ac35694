"""Which images a graph is observed on, and what it is refused."""

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from PIL import Image

from exporters.onnx import OnnxOptions, check_opset, export_graph
from exporters.precision.half import HalfReport
from exporters.precision.int8 import Quantization
from exporters.precision.options import PrecisionOptions
from exporters.precision.reduce import calibration_inputs, reduce_precision
from exporters.rewrite import rewrite
from exporters.simplify import simplify
from fcn_deploy import Geometry, Variant
from fcn_deploy.choices import Calibration, Head, ImageInput, Precision, Target
from fcn_deploy.errors import ImageError, UsageError
from fcn_deploy.graph import typed_skeleton
from fcn_deploy.images import SAMPLE_PHOTO, read_image, resize
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.weights import random_network
from fcn_deploy.preprocessing import Preprocessing
from tests.exporters.passes.graphs import operators, parsed, run, weights, with_ends
from tests.messages import states
from tests.reference import relative_error

SHAPE = (1, 3, 64, 64)
LAYERS = "c = Conv<pads=[1,1,1,1]>(image, w, b) r = Relu(c) s = Conv(r, u)"
REDUCED = [Precision.FP16, Precision.BF16, Precision.INT8]


@dataclass(frozen=True)
class Kind:
    variant: Variant
    geometry: Geometry
    batch: int
    exact: bool
    interface: tuple[ImageInput, Head]

    def __str__(self) -> str:
        heads = "-".join(self.interface)
        return f"{self.variant}-{self.geometry}-{self.batch}-{'exact' if self.exact else 'plain'}-{heads}"

    @cache  # noqa: B019 - there are four
    def graph(self) -> ir.Model:
        network = random_network(NetworkSpec(self.variant, self.geometry, 4, 32), 3)
        graph = export_graph(network, OnnxOptions(64, 64, self.batch, 22))
        return with_ends(rewrite(simplify(graph)[0], Target.CPU)[0] if self.exact else graph, *self.interface)


KINDS = (
    Kind(Variant.FCN8S, Geometry.FLOOR, 1, True, (ImageInput.FLOAT, Head.LOGITS)),
    Kind(Variant.FCN16S, Geometry.CAFFE, 2, True, (ImageInput.UINT8, Head.LABELS)),
    Kind(Variant.FCN32S, Geometry.CAFFE, 2, False, (ImageInput.UINT8, Head.LOGITS)),
    Kind(Variant.FCN8S, Geometry.CAFFE, 1, False, (ImageInput.FLOAT, Head.LABELS)),
)


def picture(path: Path, pixels: Any) -> Path:
    Image.fromarray(np.broadcast_to(np.asarray(pixels, np.uint8), (40, 50, 3))).save(path)
    return path


def lenient(precision: Precision, photo: Path) -> PrecisionOptions:
    """Whatever the labels of random weights make of 8 bits."""
    return PrecisionOptions(precision, (photo,), min_agreement=0.05 if precision is Precision.INT8 else None)


def int8(*paths: Path, **given: Any) -> PrecisionOptions:
    return PrecisionOptions(Precision.INT8, paths, Calibration.MINMAX, **given)


def small(scale: float = 1.0, head: float = 1.0) -> ir.Model:
    """A layer whose map is `scale` times as large as that of an ordinary one, and scores `head` times."""
    given: dict[str, np.ndarray] = {
        "w": weights(4, 3, 3, 3) * np.float32(scale), "b": weights(4, 1, seed=1)[:, 0] * np.float32(scale),
        "u": weights(2, 4, 1, 1, seed=2) * np.float32(head / scale),
    }  # fmt: skip
    return parsed(LAYERS, "float[1,3,64,64] image", "float[1,2,64,64] s", **given)


def test_int8_without_images_is_refused() -> None:
    with pytest.raises(UsageError, check=states("int8 calibration images")) as caught:
        PrecisionOptions(Precision.INT8)

    assert "--calibration" in caught.value.remedy
    for precision in (Precision.FP32, Precision.FP16, Precision.BF16):
        PrecisionOptions(precision)


@pytest.mark.parametrize("least", [0.0, -0.1, 1.001, float("nan"), float("inf")])
def test_an_agreement_out_of_its_bounds_is_refused(least: float) -> None:
    with pytest.raises(UsageError, match=r"\b0, .*\b1\b"):
        PrecisionOptions(Precision.INT8, (SAMPLE_PHOTO,), min_agreement=least)


@pytest.mark.parametrize("opset", [18, 21])
def test_bfloat16_before_opset_22_is_refused(opset: int) -> None:
    with pytest.raises(UsageError, match=f"opset {opset} .*22"):
        check_opset(opset, Precision.BF16)

    check_opset(22, Precision.BF16)
    check_opset(opset, Precision.FP16)


def test_images_are_stretched_to_the_input_in_the_order_of_their_names(tmp_path: Path, photo: Path) -> None:
    first, second = picture(tmp_path / "a.png", np.indices((40, 50)).T.sum(2).T[..., None]), photo

    found = calibration_inputs(int8(tmp_path), SHAPE, Preprocessing())

    assert [given.name for given in found] == [first.name, second.name]
    for given, path in zip(found, (first, second), strict=True):
        np.testing.assert_array_equal(given.image, Preprocessing().apply(resize(read_image(path), 64, 64)[None]))


def test_without_images_the_sample_photo_is_observed() -> None:
    (found,) = calibration_inputs(PrecisionOptions(Precision.FP16), SHAPE, Preprocessing())

    assert found.name == SAMPLE_PHOTO.name


def test_an_empty_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()

    with pytest.raises(ImageError, check=states("empty no image")):
        calibration_inputs(int8(tmp_path / "empty"), SHAPE, Preprocessing())


def test_an_image_that_cannot_be_read_is_refused_by_name(tmp_path: Path, photo: Path) -> None:
    (tmp_path / "torn.png").write_bytes(photo.read_bytes()[: photo.stat().st_size // 2])

    with pytest.raises(ImageError, check=states("torn.png truncated")):
        calibration_inputs(int8(photo, tmp_path / "torn.png"), SHAPE, Preprocessing())
    with pytest.raises(ImageError, check=states("missing.png file")):
        calibration_inputs(int8(tmp_path / "missing.png"), SHAPE, Preprocessing())


def test_images_of_one_colour_are_refused(tmp_path: Path) -> None:
    for name, colour in (("red", (200, 0, 0)), ("grey", (90, 90, 90))):
        picture(tmp_path / f"{name}.png", colour)

    with pytest.raises(ImageError, check=states("2 images single colour")):
        calibration_inputs(int8(tmp_path), SHAPE, Preprocessing())


@pytest.mark.parametrize("channel", [0, 1, 2])
def test_a_picture_that_varies_in_one_channel_alone_will_do(channel: int, tmp_path: Path) -> None:
    pixels = np.zeros((40, 50, 3), np.uint8)
    pixels[:, 25:, channel] = 255
    picture(tmp_path / "plain.png", (9, 9, 9))

    assert (
        len(
            calibration_inputs(
                int8(tmp_path / "plain.png", picture(tmp_path / "half.png", pixels)), SHAPE, Preprocessing()
            )
        )
        == 2
    )


def test_float32_is_left_as_it_is() -> None:
    model = small()

    assert reduce_precision(model, PrecisionOptions(), (), Target.CPU) == (model, None)


def test_dark_photos_calibrate_too(tmp_path: Path) -> None:
    """All values of the input are below 0 then, and 0 itself, which pads it, has to be in range."""
    dark = picture(tmp_path / "dark.png", np.random.default_rng(0).integers(0, 60, (40, 50, 3)))
    options = int8(dark, min_agreement=0.5)
    inputs = calibration_inputs(options, SHAPE, Preprocessing())
    assert inputs[0].image.max() < 0

    found, _ = reduce_precision(small(), options, inputs, Target.CPU)

    before, after = (run(model, tmp_path, {"image": inputs[0].image})[0] for model in (small(), found))
    assert relative_error(before, after) < 0.03


def test_maps_that_overflow_are_scaled_and_reported(tmp_path: Path, photo: Path) -> None:
    model, options = small(2000), PrecisionOptions(Precision.FP16, (photo,))
    inputs = calibration_inputs(options, SHAPE, Preprocessing())

    found, report = reduce_precision(model, options, inputs, Target.CPU)

    before, after = (run(one, tmp_path, {"image": inputs[0].image})[0] for one in (model, found))
    assert isinstance(report, HalfReport)
    assert report.largest > 65504
    assert set(report.rescaled) == {"c"}
    assert relative_error(before, after) < 2e-3


def test_scores_that_overflow_are_refused(photo: Path) -> None:
    model, options = small(head=2000), PrecisionOptions(Precision.FP16, (photo,))
    inputs = calibration_inputs(options, SHAPE, Preprocessing())

    with pytest.raises(UsageError, match=r"s .*65504") as caught:
        reduce_precision(model, options, inputs, Target.CPU)
    assert "bf16" in caught.value.remedy

    reduce_precision(model, PrecisionOptions(Precision.BF16, (photo,)), inputs, Target.CPU)


@pytest.mark.parametrize("precision", REDUCED)
@pytest.mark.parametrize("kind", KINDS, ids=str)
def test_every_kind_of_graph_can_be_reduced(precision: Precision, kind: Kind, tmp_path: Path) -> None:
    batch = kind.batch
    options = lenient(precision, SAMPLE_PHOTO)
    graph = kind.graph()
    (given,) = inputs = calibration_inputs(options, (batch, 3, 64, 64), Preprocessing())

    found, report = reduce_precision(graph, options, inputs, Target.CPU)

    onnx.checker.check_model(typed_skeleton(found), full_check=True)
    assert isinstance(report, Quantization if precision is Precision.INT8 else HalfReport)
    assert ("QuantizeLinear" in operators(found)) is (precision is Precision.INT8)
    name, feed = ("image", given.image) if kind.interface[0] is ImageInput.FLOAT else ("pixels", given.pixels)
    assert feed is not None
    before, after = (run(model, tmp_path, {name: feed})[0] for model in (graph, found))
    if kind.interface[1] is Head.LOGITS:
        assert relative_error(before, after) < {"fp16": 5e-3, "bf16": 3e-2, "int8": 0.3}[precision]
    assert after.dtype == before.dtype


@pytest.mark.parametrize("target", Target)
def test_bfloat16_pools_are_left_to_tensorrt_alone(target: Target, tmp_path: Path) -> None:
    """No other runtime for GPUs has kernels for them."""
    graph = KINDS[0].graph()
    options = PrecisionOptions(Precision.BF16)
    inputs = calibration_inputs(options, (KINDS[0].batch, 3, 64, 64), Preprocessing())

    found, _ = reduce_precision(graph, options, inputs, target)

    pools = operators(found).count("MaxPool")
    assert pools == (operators(graph).count("MaxPool") if target is Target.TENSORRT else 0)
    with_pools, _ = reduce_precision(graph, options, inputs, Target.TENSORRT)
    spec = graph.graph.inputs[0]
    feed = inputs[0].image if spec.name == "image" else inputs[0].pixels
    assert feed is not None
    one, other = (run(model, tmp_path, {str(spec.name): feed})[0] for model in (found, with_pools))
    assert np.array_equal(one, other)


@pytest.mark.parametrize("again", REDUCED)
@pytest.mark.parametrize("first", REDUCED)
def test_a_reduced_graph_is_not_reduced_again(first: Precision, again: Precision, photo: Path) -> None:
    options = {p: lenient(p, photo) for p in REDUCED}
    inputs = calibration_inputs(options[first], SHAPE, Preprocessing())
    model, _ = reduce_precision(small(), options[first], inputs, Target.CPU)

    with pytest.raises(UsageError, check=states("reduced precision already")):
        reduce_precision(model, options[again], inputs, Target.CPU)
