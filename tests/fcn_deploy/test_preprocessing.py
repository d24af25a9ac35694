"""Pre-processing against its definition in float64, against the graphs that repeat it, and its bounds."""

import math
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fcn_deploy as fd
from exporters.passes.heads import PixelHead, pixel_nodes
from exporters.triton.graphs import preprocessing as separate_graph
from fcn_deploy.model_info import ModelInfo, NetworkSpec, Provenance
from fcn_deploy.preprocessing import MEAN_BGR, PRESETS, Preprocessing
from fcn_deploy.runtime.run_graph import run_graph
from tests.messages import states

RGB, BGR = fd.ChannelOrder.RGB, fd.ChannelOrder.BGR
PIXELS = np.random.default_rng(2).integers(0, 256, (2, 5, 7, 3), dtype=np.uint8)
OTHERS = Preprocessing(BGR, 1 / 127.5, (0.9, 1.0, 1.1), (0.5, 0.25, 1.5))
ALL = [*PRESETS.values(), OTHERS]
finite = st.floats(-300, 300, width=32)
positive = st.floats(2**-10, 2**10, width=32)


def by_definition(pixels: np.ndarray, how: Preprocessing) -> np.ndarray:
    """(pixel * scale - mean) / std of each channel, in float64."""
    planes = pixels.astype(np.float64).transpose(0, 3, 1, 2)
    planes = planes[:, ::-1] if how.channel_order is BGR else planes
    mean, std = (np.array(values).reshape(3, 1, 1) for values in (how.mean, how.std))
    return np.asarray((planes * how.scale - mean) / std)


@given(st.sampled_from(list(fd.ChannelOrder)), positive, st.tuples(finite, finite, finite), st.tuples(*[positive] * 3))
def test_it_is_its_definition(
    order: fd.ChannelOrder, scale: float, mean: tuple[float, float, float], std: tuple[float, float, float]
) -> None:
    how = Preprocessing(order, scale, mean, std)
    expected = by_definition(PIXELS, how)

    found = how.apply(PIXELS)

    low, high = how.bounds
    largest = 255 * scale + max(map(abs, mean))
    assert found.dtype == np.float32
    assert np.abs(found - expected).max() <= 4 * 2**-24 * largest / min(std)
    assert low <= expected.min()
    assert expected.max() <= high


def test_the_presets_are_those_of_the_weights_that_are_published() -> None:
    """Caffe's as in voc_layers.py; torchvision's transforms: x / 255, less the mean, over the deviation."""
    caffe, imagenet, unit = (PRESETS[name].apply(PIXELS) for name in fd.Preset)
    planes = PIXELS.transpose(0, 3, 1, 2).astype(np.float64)
    mean, std = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])

    assert np.array_equal(caffe, (planes[:, ::-1].astype(np.float32) - np.array(MEAN_BGR, np.float32).reshape(3, 1, 1)))
    assert np.abs(imagenet - (planes / 255 - mean.reshape(3, 1, 1)) / std.reshape(3, 1, 1)).max() < 1e-6
    assert np.abs(unit - planes / 255).max() < 1e-7
    assert [str(PRESETS[name]) for name in fd.Preset] == [
        "BGR, less 104.007 116.669 122.679 (caffe)",
        "RGB, times 0.00392157, less 0.485 0.456 0.406, over 0.229 0.224 0.225 (imagenet)",
        "RGB, times 0.00392157 (unit)",
    ]


@pytest.mark.parametrize("how", ALL, ids=str)
def test_the_mean_colour_becomes_zero_within_half_a_step(how: Preprocessing) -> None:
    found = how.apply(how.mean_image(4, 6)[None])

    half_step = 0.5 * how.scale / min(how.std)
    assert how.mean_image(4, 6).shape == (4, 6, 3)
    assert np.abs(found).max() <= half_step + 1e-6


def test_a_mean_beyond_the_pixels_is_cut_off() -> None:
    assert Preprocessing(RGB, 1.0, (-5.0, 300.0, 127.5)).mean_image(1, 1).tolist() == [[[0, 255, 128]]]


@pytest.mark.parametrize("how", ALL, ids=str)
def test_graphs_repeat_it_to_the_bit(how: Preprocessing) -> None:
    info = ModelInfo(NetworkSpec(fd.Variant.FCN32S), Provenance(rng_seed=0), preprocessing=how)
    graph = separate_graph(info, *PIXELS.shape[:3])

    found = run_graph(graph, {"pixels": PIXELS})["image"]

    assert found.tobytes() == how.apply(PIXELS).tobytes()
    assert callable(pixel_nodes)
    assert PixelHead(how).name == "pixels"


def test_another_order_keeps_the_values_of_each_colour() -> None:
    turned = OTHERS.with_order(RGB)

    assert turned.mean == (1.1, 1.0, 0.9)
    assert np.array_equal(turned.apply(PIXELS), OTHERS.apply(PIXELS)[:, ::-1])
    assert OTHERS.with_order(BGR) is OTHERS


@pytest.mark.parametrize(("values", "facts"), [
    ({"scale": 0.0}, "scale 0 float32 above 0"),
    ({"scale": math.nan}, "scale nan"),
    ({"scale": 1e-60}, "scale 1e-60 above 0"),
    ({"scale": 1e60}, "scale 1e+60"),
    ({"mean": (0.0, math.inf, 0.0)}, "mean inf"),
    ({"std": (1.0, 1.0, -2.0)}, "std -2 above 0"),
])  # fmt: skip
def test_values_that_are_no_pre_processing(values: dict[str, object], facts: str) -> None:
    with pytest.raises(fd.UsageError, check=states(facts, remedy=f"--{next(iter(values))}")):
        Preprocessing(**values)  # type: ignore[arg-type]


@pytest.mark.parametrize("how", ALL, ids=str)
def test_it_comes_back_from_metadata(how: Preprocessing) -> None:
    info = ModelInfo(NetworkSpec(fd.Variant.FCN8S), Provenance(rng_seed=0), preprocessing=how)

    assert ModelInfo.from_metadata(info.to_metadata(), "x").preprocessing == how


def test_files_of_before_have_neither_scale_nor_deviation() -> None:
    metadata = ModelInfo(NetworkSpec(fd.Variant.FCN8S), Provenance(rng_seed=0)).to_metadata()
    old = {key: value for key, value in metadata.items() if key not in ("fcn_deploy.scale", "fcn_deploy.std")}

    assert ModelInfo.from_metadata(old, "x").preprocessing == Preprocessing()


@pytest.mark.parametrize("how", ["imagenet", "unit"])
@pytest.mark.parametrize("image_input", list(fd.ImageInput))
def test_an_fcn_that_was_trained_with_it_is_served_rightly(
    tmp_path: Path, how: str, image_input: fd.ImageInput, photo: Path
) -> None:
    """Labels of a photo against PyTorch on the definition; zero padding stands for the mean with both inputs."""
    from PIL import Image

    from fcn_deploy.models.weights import random_network

    preset = PRESETS[fd.Preset(how)]
    options = fd.ExportOptions(
        fd.Variant.FCN8S, tmp_path / "bundle", channel_divisor=16, onnx=fd.OnnxOptions(64, 64), preprocessing=preset,
        image_input=image_input,
    )  # fmt: skip
    pixels = np.asarray(Image.open(photo).convert("RGB").resize((64, 64), Image.Resampling.BILINEAR))

    path = fd.export(options).path
    with fd.Segmenter(path) as segmenter:
        found = segmenter.segment(pixels)

    import torch

    network = random_network(fd.NetworkSpec(fd.Variant.FCN8S, channel_divisor=16), 0)
    with torch.inference_mode():
        logits = network(torch.from_numpy(by_definition(pixels[None], preset).astype(np.float32)))
    assert (found == logits.argmax(1)[0].numpy()).mean() > 0.999
    assert fd.open_bundle(path).info.preprocessing == preset
