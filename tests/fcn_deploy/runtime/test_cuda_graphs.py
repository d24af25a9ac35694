"""Every kind of graph that is shipped, on a GPU: all of it there, nothing copied on the way, and in its tier."""

import itertools
from pathlib import Path

import onnx
import pytest

import fcn_deploy as fd
from fcn_deploy import Geometry, Head, ImageInput, Optimize, OrtOptions, Precision, Provider, Target, Variant
from fcn_deploy.runtime.ort import OrtRunner, provider_problem
from tests.conftest import NARROW

CUDA_PROBLEM = provider_problem(Provider.CUDA)
pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(CUDA_PROBLEM is not None, reason=f"no CUDA: {CUDA_PROBLEM}"),
]
ARITHMETICS = (Precision.FP32, Precision.FP16, Precision.BF16)
GRAPHS = [
    *itertools.product(Variant, [Geometry.FLOOR], Optimize, ARITHMETICS, Head, [Target.CUDA]),
    *itertools.product([Variant.FCN8S], [Geometry.CAFFE], [Optimize.EXACT], ARITHMETICS, Head, [Target.CPU]),
    *itertools.product([Variant.FCN8S], [Geometry.CAFFE], [Optimize.EXACT], ARITHMETICS[:2], Head, [Target.TENSORRT]),
]


@pytest.fixture(scope="module", params=GRAPHS, ids="-".join)
def graph(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A narrow bundle; one that gives labels takes pixels."""
    variant, geometry, optimize, precision, head, target = request.param
    options = fd.ExportOptions(
        variant,
        tmp_path_factory.mktemp("graph") / "bundle",
        geometry=geometry,
        channel_divisor=NARROW,
        onnx=fd.OnnxOptions(96, 96, opset=fd.default_opset(precision)),
        optimize=optimize,
        target=target,
        head=head,
        image_input=ImageInput.UINT8 if head is Head.LABELS else ImageInput.FLOAT,
        precision=fd.PrecisionOptions(precision),
        verify=False,
    )
    return fd.export(options).path


@pytest.mark.parametrize("nhwc", [False, True])
def test_all_of_it_is_there_and_nothing_is_copied_on_the_way(graph: Path, nhwc: bool, tmp_path: Path) -> None:
    """The graph as ONNX Runtime runs it: its own copies between devices are nodes of it."""
    ran = tmp_path / "ran.onnx"

    if nhwc and fd.open_bundle(graph).info.precision is Precision.BF16:
        pytest.skip("ONNX Runtime has no bfloat16 convolutions channels last")
    with OrtRunner(graph / "model.onnx", OrtOptions(Provider.CUDA, nhwc=nhwc), optimized=ran) as runner:
        assert set(runner.placement) == {"CUDAExecutionProvider"}

    operators = {node.op_type for node in onnx.load(ran, load_external_data=False).graph.node}
    assert "Conv" in operators
    assert not {name for name in operators if name.startswith("Memcpy")}


def test_it_computes_what_pytorch_does(graph: Path) -> None:
    fd.verify(graph, fd.VerifyOptions(provider=Provider.CUDA)).parity.require()
