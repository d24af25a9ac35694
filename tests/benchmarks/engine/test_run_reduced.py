"""Benchmarks of bundles in reduced precision, of the trained sample."""

from pathlib import Path

import pytest

import fcn_deploy as fd
from benchmarks.report.results import RowStatus
from benchmarks.train_sample import Split, write_scenes

SIZE = 224
QUICK = fd.Protocol(duration_s=0.05, warmup_s=0.01, rounds=3, ceiling_s=0.05)


@pytest.mark.usefixtures("shared_preparations")
@pytest.mark.parametrize(("precision", "how"), [
    (fd.Precision.FP16, "half precision by rounding"), (fd.Precision.INT8, "threads"),
])  # fmt: skip
def test_rows_say_what_they_compute_in_and_are_held_to_its_tier(
    tmp_path: Path, precision: fd.Precision, how: str
) -> None:
    photos = write_scenes(tmp_path / "photos", Split.TRAINING, 4, SIZE)
    reduction = fd.PrecisionOptions(precision, (photos,))
    weights, onnx = fd.WeightsOptions(fd.SAMPLE_CHECKPOINT), fd.OnnxOptions(SIZE, SIZE)
    bundle = fd.export(
        fd.ExportOptions(fd.Variant.FCN8S, tmp_path / "out", weights=weights, onnx=onnx, precision=reduction)
    ).path
    rebuild = fd.RebuildOptions(fd.SAMPLE_CHECKPOINT)
    options = fd.BenchOptions(fd.Provider.CPU, ("ort-plain", "ort"), protocol=QUICK, rebuild=rebuild)

    rows = {row.key.case: row for row in fd.bench([bundle], options).rows}

    assert {row.status for row in rows.values()} == {RowStatus.MEASURED}
    assert {name: row.precision for name, row in rows.items()} == {
        "ort-plain": "fp32", "ort": precision,
    }  # fmt: skip
    assert rows["ort"].key.network == f"FCN-8s caffe / 8, 7 classes {precision}"
    assert how in rows["ort"].options
    assert rows["ort"].worst_error is not None
    assert rows["ort"].worst_error > 1e-4
    names = [c["input_name"] for c in rows["ort"].parity]
    assert names == (
        ["0.jpg", "1.jpg", "2.jpg", "3.jpg"] if precision is fd.Precision.INT8 else ["astronaut.jpg", "noise 0"]
    )
