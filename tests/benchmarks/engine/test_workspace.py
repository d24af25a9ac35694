"""The engine that is measured beside its bundle, found and checked; built for a GPU that is not here."""

from pathlib import Path

import pytest

import fcn_deploy as fd
from benchmarks.engine.cases import CASES, ComputePrecision, Graph
from benchmarks.engine.workspace import workspace_of
from fcn_deploy.artifact.bundle import open_bundle

ENGINE = next(case for case in CASES if case.graph is Graph.ENGINE)


def build(bundle: Path, plan: Path, precision: fd.Precision) -> None:
    fd.build_engine(fd.EngineOptions(bundle, plan, precision, capabilities=("8.9",)))


def test_the_engine_beside_a_bundle_is_measured_in_its_own_precision(bundle: Path, tmp_path: Path) -> None:
    build(bundle, bundle.with_name("bundle.plan"), fd.Precision.FP16)

    found = workspace_of(open_bundle(bundle), tmp_path, fd.RebuildOptions())

    engine = found.engine()
    assert engine is not None
    assert found.graph_path(Graph.ENGINE) == tmp_path / "bundle.plan"
    case = ENGINE.for_bundle(found.info, engine.info)
    assert case.precision is ComputePrecision.FP16
    assert case.tier(found.info).name == "fp16"


def test_without_an_engine_there_is_none(bundle: Path, tmp_path: Path) -> None:
    assert workspace_of(open_bundle(bundle), tmp_path, fd.RebuildOptions()).engine() is None


def test_an_engine_of_another_model_is_refused(bundle: Path, tmp_path: Path) -> None:
    other = fd.export(
        fd.ExportOptions(
            fd.Variant.FCN32S, tmp_path / "other", channel_divisor=16, onnx=fd.OnnxOptions(96, 96), verify=False
        )
    )
    build(other.path, tmp_path / "bundle.plan", fd.Precision.FP32)

    with pytest.raises(fd.BundleError, match=r"bundle\.plan .*model\.onnx"):
        workspace_of(open_bundle(bundle), tmp_path, fd.RebuildOptions()).engine()
