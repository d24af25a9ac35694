"""The graphs that packages are made of, run by ONNX Runtime itself."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest

import fcn_deploy as fd
from exporters.triton.graphs import (
    pixels_to_labels,
    postprocessing,
    preprocessing,
    require_same_labels,
    with_free_batch,
)
from fcn_deploy.onnx_file import read_model, write_model
from tests.exporters.passes.graphs import parsed
from tests.exporters.triton.conftest import Bundles, pictures

INFO = fd.ModelInfo(fd.NetworkSpec(fd.Variant.FCN8S), fd.Provenance(rng_seed=0))
FLOAT, LOGITS = fd.ImageInput.FLOAT, fd.Head.LOGITS


def session(model: ir.Model, folder: Path) -> ort.InferenceSession:
    path = folder / "model.onnx"
    write_model(model, path)
    onnx.checker.check_model(path, full_check=True)
    return ort.InferenceSession(path, providers=["CPUExecutionProvider"])


def test_preprocessing_subtracts_the_mean_and_turns_rgb_to_bgr_planes(tmp_path: Path) -> None:
    photos = pictures(2, 5, 7)
    # Float32 once only, of numbers that are exact in float64.
    mean = np.array([104.00698793, 116.66876762, 122.67891434], dtype=np.float32)
    expected = np.stack([photos[..., 2 - c].astype(np.float32) - mean[c] for c in range(3)], axis=1)

    (image,) = session(preprocessing(INFO, 2, 5, 7), tmp_path).run(["image"], {"pixels": photos})

    assert image.dtype == np.float32
    assert np.array_equal(image, expected)


def test_postprocessing_takes_the_largest_logit_and_of_equal_ones_the_first(tmp_path: Path) -> None:
    logits = np.random.default_rng(0).integers(0, 3, (2, 5, 6, 4)).astype(np.float32)
    expected = [
        [[max(range(5), key=lambda k: (one[k, y, x], -k)) for x in range(4)] for y in range(6)] for one in logits
    ]

    (labels,) = session(
        postprocessing(replace(INFO, network=fd.NetworkSpec(fd.Variant.FCN8S, num_classes=5)), 2, 6, 4), tmp_path
    ).run(["labels"], {"logits": logits})

    assert labels.dtype == np.uint8
    assert labels.tolist() == expected


def test_the_artifacts_own_graph_stays_as_it_was(bundles: Bundles) -> None:
    model = fd.open_bundle(bundles(FLOAT, LOGITS, 4)).model
    before = ir.to_proto(model).SerializeToString()

    changed = with_free_batch(pixels_to_labels(model, INFO))

    assert [value.name for value in (*changed.graph.inputs, *changed.graph.outputs)] == ["pixels", "labels"]
    assert ir.to_proto(model).SerializeToString() == before


@pytest.mark.parametrize(("variant", "size", "expands"), [
    (fd.Variant.FCN16S, 64, False), (fd.Variant.FCN32S, 320, True),
])  # fmt: skip
def test_a_free_batch_computes_what_the_fixed_one_does(
    tmp_path: Path, variant: fd.Variant, size: int, expands: bool
) -> None:
    """The rewritten graphs hold constants beside maps, a copy for each image: stored, or where large by an Expand."""
    options = fd.ExportOptions(
        variant, tmp_path / "b", channel_divisor=16, onnx=fd.OnnxOptions(size, size, batch=3), verify=False
    )
    path = fd.export(options).path / "model.onnx"
    assert any(node.op_type == "Expand" for node in read_model(path).graph) == expands
    fixed = ort.InferenceSession(path, providers=["CPUExecutionProvider"])
    free = session(with_free_batch(read_model(path)), tmp_path)
    images = np.random.default_rng(0).normal(0, 60, (3, 3, size, size)).astype(np.float32)
    (expected,) = fixed.run(["logits"], {"image": images})

    for batch in (1, 2, 3, 5):
        given = np.concatenate([images, images])[:batch]
        (found,) = free.run(["logits"], {"image": given})
        wanted = np.concatenate([expected, expected])[:batch]
        assert np.abs(found - wanted).max() <= 1e-6 * np.ptp(expected)
    assert free.get_inputs()[0].shape == ["batch", 3, size, size]
    assert free.get_outputs()[0].shape == ["batch", 21, size, size]


def test_a_batch_held_in_another_way_is_refused() -> None:
    fixed = parsed("y = Reshape(x, s)", "float[2,3,4,4] x", "float[2,3,16] y", s=np.array([2, 3, 16]))

    with pytest.raises(fd.UsageError, match=r"y .*2.*\n.*--backend python"):
        with_free_batch(fixed)


def test_constants_that_differ_from_image_to_image_are_not_repeated() -> None:
    beside = np.arange(2 * 3 * 4 * 1, dtype=np.float32).reshape(2, 3, 4, 1)
    fixed = parsed("y = Concat<axis=3>(x, c)", "float[2,3,4,4] x", "float[2,3,4,5] y", c=beside)

    with pytest.raises(fd.UsageError, match=r"y .*2"):
        with_free_batch(fixed)


def test_a_graph_that_labels_otherwise_is_not_packaged(bundles: Bundles) -> None:
    bundle = fd.open_bundle(bundles(FLOAT, LOGITS, 1))
    good = pixels_to_labels(bundle.model, bundle.info)
    require_same_labels(bundle.model_path, good, bundle.input_shape, bundle.info)
    mean = good.graph.initializers["preprocess/mean_rgb"]
    mean.const_value = ir.tensor(np.array([0, 0, 0], dtype=np.float32), name=mean.name)

    with pytest.raises(fd.ParityError, match=r"\d+ of 18432 pixels"):
        require_same_labels(bundle.model_path, good, bundle.input_shape, bundle.info)
