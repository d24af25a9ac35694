from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from exporters.onnx import OnnxOptions, export_graph
from exporters.passes.heads import LabelHead, PixelHead
from fcn_deploy import Head, ImageInput, NetworkSpec, UsageError, Variant
from fcn_deploy.graph import static_shape
from fcn_deploy.models.weights import random_network
from fcn_deploy.preprocessing import Preprocessing
from tests.exporters.passes.graphs import parsed, run, weights, with_ends

PIXELS = np.random.default_rng(0).integers(0, 256, (2, 40, 50, 3), dtype=np.uint8)


@pytest.fixture(scope="module")
def graph() -> ir.Model:
    network = random_network(NetworkSpec(Variant.FCN8S, num_classes=5, channel_divisor=32), 0)
    return export_graph(network, OnnxOptions(40, 50, batch=2))


def interface(model: ir.Model) -> list[tuple[str, str, list[int]]]:
    values = (*model.graph.inputs, *model.graph.outputs)
    return [(str(v.name), str(v.dtype), list(static_shape(v) or ())) for v in values]


def test_labels_are_the_largest_logits(graph: ir.Model, tmp_path: Path) -> None:
    image = {"image": Preprocessing().apply(PIXELS)}
    (logits,) = run(graph, tmp_path, image)

    (labels,) = run(with_ends(graph, ImageInput.FLOAT, Head.LABELS), tmp_path, image)

    assert labels.dtype == np.uint8
    assert np.array_equal(labels, logits.argmax(axis=1))
    assert len(np.unique(labels)) > 1


def test_pixels_are_preprocessed_as_images_are(graph: ir.Model, tmp_path: Path) -> None:
    """The mean must not fold into the bias: the padded frame stands for the mean colour, not for black."""
    (expected,) = run(graph, tmp_path, {"image": Preprocessing().apply(PIXELS)})

    (found,) = run(with_ends(graph, ImageInput.UINT8, Head.LOGITS), tmp_path, {"pixels": PIXELS})

    assert np.abs(found - expected).max() <= 1e-6 * np.ptp(expected)


def test_both_ends_at_once_and_the_graph_itself_untouched(graph: ir.Model) -> None:
    before = interface(graph)

    both = with_ends(graph, ImageInput.UINT8, Head.LABELS)

    assert interface(both) == [("pixels", "UINT8", [2, 40, 50, 3]), ("labels", "UINT8", [2, 40, 50])]
    assert interface(graph) == before == [("image", "FLOAT", [2, 3, 40, 50]), ("logits", "FLOAT", [2, 5, 40, 50])]
    assert with_ends(graph, ImageInput.FLOAT, Head.LOGITS) is graph
    assert not LabelHead()(both).modified
    assert not PixelHead(Preprocessing())(both).modified


def test_of_equal_logits_the_lowest_class_wins(tmp_path: Path) -> None:
    model = parsed("logits = Identity(x)", "float[1,4,2,2] x", "float[1,4,2,2] logits")
    tied = np.zeros((1, 4, 2, 2), np.float32)
    tied[0, 2:, 0, 0] = 1

    (labels,) = run(with_ends(model, ImageInput.FLOAT, Head.LABELS), tmp_path, {"x": tied})

    assert labels.tolist() == [[[2, 0], [0, 0]]]


@pytest.mark.parametrize(("outputs", "reason"), [
    ("float[1,256,4,4] y", "256.* 255"),
    ("float[1,256,16] y", "y .*N x K x H x W"),
])  # fmt: skip
def test_what_cannot_be_logits(outputs: str, reason: str) -> None:
    model = parsed("y = Identity(x)", outputs.replace(" y", " x"), outputs)

    with pytest.raises(UsageError, match=reason):
        with_ends(model, ImageInput.FLOAT, Head.LABELS)


@pytest.mark.parametrize(("body", "inputs", "reason"), [
    ("y = Conv(x, w)", "float[1,3,H,4] x", "x .*N x 3 x H x W"),
    ("y = Conv(x, v)", "float[1,1,4,4] x", "x .*N x 3 x H x W"),
    ("y = Conv(x, v)", "float[1,1,4,4] x, float[1] z", "inputs"),
])  # fmt: skip
def test_what_cannot_take_pixels(body: str, inputs: str, reason: str) -> None:
    arrays = {"w": weights(2, 3, 3, 3), "v": weights(2, 1, 3, 3)}
    model = parsed(body, inputs, "float[1,C,H,W] y", **arrays)

    with pytest.raises(UsageError, match=reason):
        with_ends(model, ImageInput.UINT8, Head.LOGITS)


def test_pixels_pass_through_an_explicit_pad(tmp_path: Path) -> None:
    plain = parsed(
        "p = Pad(image, n) y = Conv(p, w)", "float[2,3,40,50] image", "float[2,2,H,W] y",
        n=np.array([0, 0, 4, 4, 0, 0, 4, 4]), w=weights(2, 3, 3, 3),
    )  # fmt: skip
    (expected,) = run(plain, tmp_path, {"image": Preprocessing().apply(PIXELS)})

    (found,) = run(with_ends(plain, ImageInput.UINT8, Head.LOGITS), tmp_path, {"pixels": PIXELS})

    assert np.abs(found - expected).max() <= 1e-6 * np.ptp(expected)


@pytest.mark.parametrize("body", [
    "logits = Relu(image)", "logits = Conv<group=3>(image, g)",
    "a = Conv(image, w) b = Conv(image, w) logits = Add(a, b)",
])  # fmt: skip
def test_where_no_weights_can_be_reversed_the_planes_are(body: str, tmp_path: Path) -> None:
    arrays = {"w": weights(2, 3, 3, 3), "g": weights(3, 1, 3, 3)}
    used = {name: array for name, array in arrays.items() if f" {name})" in body}
    plain = parsed(body, "float[2,3,40,50] image", "float[2,C,H,W] logits", **used)
    (expected,) = run(plain, tmp_path, {"image": Preprocessing().apply(PIXELS)})

    (found,) = run(with_ends(plain, ImageInput.UINT8, Head.LOGITS), tmp_path, {"pixels": PIXELS})

    assert np.abs(found - expected).max() <= 1e-6 * np.ptp(expected)
