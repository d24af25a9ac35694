"""8-bit bundles as engines: TensorRT takes symmetric int8 and no uint8."""

from pathlib import Path

import pytest

import fcn_deploy as fd
from benchmarks.train_sample import Split, write_scenes
from fcn_deploy.choices import Target
from tests.engines import built

SIZE = 224


def int8_bundle(folder: Path, target: Target) -> Path:
    photos = write_scenes(folder / "photos", Split.TRAINING, 4, SIZE)
    reduction = fd.PrecisionOptions(fd.Precision.INT8, (photos,))
    weights, onnx = fd.WeightsOptions(fd.SAMPLE_CHECKPOINT), fd.OnnxOptions(SIZE, SIZE)
    wanted = fd.ExportOptions(
        fd.Variant.FCN8S, folder / "out", weights=weights, onnx=onnx, precision=reduction, target=target, verify=False
    )
    return fd.export(wanted).path


@pytest.mark.parametrize("target", [Target.TENSORRT, Target.CUDA])
def test_symmetric_int8_builds_and_computes_in_it(tmp_path: Path, target: Target) -> None:
    engine = built(int8_bundle(tmp_path, target), tmp_path / "int8.plan").engine

    assert engine.info.precision is fd.Precision.INT8
    # The trunk's fifteen convolutions at least.
    assert engine.layers.counts["int8"] >= 15


def test_the_same_file_runs_on_a_cpu(tmp_path: Path) -> None:
    bundle = int8_bundle(tmp_path, Target.TENSORRT)

    assert fd.verify(bundle, fd.VerifyOptions(fd.SAMPLE_CHECKPOINT)).parity.mean_iu > 0.9


def test_uint8_maps_are_refused_before_tensorrt_is_asked(tmp_path: Path) -> None:
    bundle = int8_bundle(tmp_path, Target.CPU)

    with pytest.raises(fd.UsageError, match=r"uint8.* image/quantize") as caught:
        built(bundle, tmp_path / "int8.plan")

    assert "--target tensorrt" in caught.value.remedy
