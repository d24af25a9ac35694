from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional

import fcn_deploy as fd
from benchmarks.engine.cases import ComputePrecision
from benchmarks.engine.ceilings import convolution_graph, measure_ceilings, product_graph, work_of
from benchmarks.engine.processes import WorkerFailure, WorkerProcess
from benchmarks.report.results import Ceilings, WorkEstimate
from exporters.onnx import export_graph
from exporters.passes.cost import MACHINES
from exporters.passes.fast_convolution import FastConvolution
from exporters.rewrite import rewrite
from exporters.simplify import simplify
from fcn_deploy.graph import layers
from fcn_deploy.models.fcn import empty_network
from fcn_deploy.onnx_file import write_model
from fcn_deploy.runtime.ort import OrtRunner
from tests.conftest import narrow_options

CEILINGS = Ceilings(copied_bytes_per_s=1e9, multiply_adds_per_s={"fp32": 1e11})


def test_the_larger_of_the_two_times_is_the_limit() -> None:
    assert CEILINGS.limit_ns(WorkEstimate(10**11, 10**6, 0), "fp32") == 1e9
    assert CEILINGS.limit_ns(WorkEstimate(10**6, 10**9, 0), "fp32") == 1e9
    assert CEILINGS.limit_ns(WorkEstimate(1, 1, 1), "fp16") is None


def test_the_better_of_two_measurements_counts() -> None:
    other = Ceilings(5e8, {"fp32": 2e11, "fp16": 1e12})

    assert CEILINGS.at_best(other) == Ceilings(1e9, {"fp32": 2e11})
    assert CEILINGS.at_best(None) is CEILINGS


def test_work_of_a_real_graph(tmp_path: Path) -> None:
    """Multiply-adds against the inspection's sum; bytes against the file, which holds hardly more than the weights."""
    options = replace(narrow_options(tmp_path / "plain"), optimize=fd.Optimize.SIMPLIFY, verify=False)
    bundle = fd.open_bundle(fd.export(options).path)
    inspection = fd.inspect(bundle.path)

    work = work_of(bundle.model, layers(bundle.model), element_bytes=4)

    assert work.multiply_adds == inspection.multiply_adds
    ends = (3 + 21) * 96 * 96
    assert work.least_bytes == (inspection.parameters + ends) * 4
    assert abs(work.least_bytes - 4 * ends - inspection.file_bytes) < 20_000


def test_fast_convolutions_record_what_direct_ones_take() -> None:
    """Where products cost nothing all convolutions are fast ones, and the count of the graph before stays."""
    machine = replace(MACHINES[fd.Target.CPU], products_per_s=1e18, transform_bytes_per_s=1e18, node_s=0)
    plain, _ = simplify(export_graph(fd.fcn8s(channel_divisor=16), fd.OnnxOptions(96, 96)))
    fast, _ = rewrite(plain, fd.Target.CPU, [FastConvolution(machine)])

    before, after = (work_of(model, layers(model), 4) for model in (plain, fast))

    assert after.direct_multiply_adds == before.direct_multiply_adds == before.multiply_adds
    assert after.multiply_adds < before.multiply_adds
    assert after.direct == replace(after, multiply_adds=before.multiply_adds)


def test_work_in_half_precision_moves_half_the_bytes(shared_bundle: Path) -> None:
    model = fd.open_bundle(shared_bundle).model

    whole, half = (work_of(model, layers(model), size) for size in (4, 2))

    assert half == WorkEstimate(whole.multiply_adds, whole.least_bytes // 2, whole.direct_multiply_adds)


def test_this_machines_ceilings_are_those_of_a_computer(tmp_path: Path) -> None:
    with WorkerProcess(tmp_path / "log") as process:
        found = process.run(measure_ceilings, fd.Provider.CPU, (ComputePrecision.FP32,), None, 0.05)

    assert not isinstance(found, WorkerFailure)
    assert 1e8 < found.copied_bytes_per_s < 1e13
    assert 1e8 < found.multiply_adds_per_s["fp32"] < 1e14


def test_the_product_that_is_timed_is_a_product(tmp_path: Path) -> None:
    left = np.random.default_rng(7).standard_normal((64, 64), dtype=np.float32)
    right = np.random.default_rng(1).standard_normal((64, 64), dtype=np.float32)
    write_model(product_graph(64), tmp_path / "product.onnx")

    with OrtRunner(tmp_path / "product.onnx") as runner:
        found = runner.run({"x": left})["y"]

    assert np.abs(found - left.astype(np.float64) @ right).max() < 1e-5


def test_the_convolution_that_is_timed_is_a_convolution(tmp_path: Path) -> None:
    image = np.random.default_rng(7).standard_normal((1, 8, 6, 6), dtype=np.float32)
    weights = np.random.default_rng(1).standard_normal((8, 8, 3, 3), dtype=np.float32)
    write_model(convolution_graph(8, 6), tmp_path / "convolution.onnx")

    with OrtRunner(tmp_path / "convolution.onnx") as runner:
        found = runner.run({"x": image})["y"]

    expected = functional.conv2d(torch.from_numpy(image).double(), torch.from_numpy(weights).double(), padding=1)
    assert np.abs(found - expected.numpy()).max() < 1e-5


@pytest.mark.full
def test_the_published_count_of_the_full_network(tmp_path: Path) -> None:
    """175.4 G multiply-adds for FCN-32s at 500x500 (docs/geometry.md's sizes times VGG16's widths)."""
    from exporters.onnx import export_graph

    model = export_graph(empty_network(fd.NetworkSpec(fd.Variant.FCN32S, fd.Geometry.FLOOR)), fd.OnnxOptions())

    assert round(work_of(model, layers(model), 4).multiply_adds / 1e9, 1) == 175.4
