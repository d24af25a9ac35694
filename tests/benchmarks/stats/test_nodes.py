from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

import fcn_deploy as fd
from benchmarks.stats import nodes
from benchmarks.stats.nodes import NodeTimes, time_nodes
from fcn_deploy import OrtOptions, Provider
from fcn_deploy.runtime.ort import OrtRunner, provider_problem

CUDA_PROBLEM = provider_problem(Provider.CUDA)


@pytest.fixture(scope="module")
def found(shared_bundle: Path) -> NodeTimes:
    return time_nodes(shared_bundle / "model.onnx", OrtOptions(), 0.0)


def test_every_node_that_runs_is_timed(shared_bundle: Path, found: NodeTimes, tmp_path: Path) -> None:
    with OrtRunner(shared_bundle / "model.onnx", optimized=tmp_path / "ran.onnx"):
        ran = onnx.load(tmp_path / "ran.onnx", load_external_data=False).graph.node

    assert found.problems == {}
    # Names of nodes that ONNX Runtime adds are not the same in every session.
    assert sorted(node.operator for node in found.nodes) == sorted(node.op_type for node in ran)
    assert all(node.time_ns >= 0 for node in found.nodes)
    assert sum(node.time_ns for node in found.nodes) > 0


def test_work_is_that_of_the_graph(shared_bundle: Path, found: NodeTimes) -> None:
    """The runtime may pad channels for its fast kernels, which adds to a narrow network's convolutions."""
    layers = {layer.operator: 0 for layer in fd.inspect(shared_bundle).layers}
    for layer in fd.inspect(shared_bundle).layers:
        layers[layer.operator] += layer.multiply_adds
    counted = {operator: sum(n.multiply_adds for n in found.nodes if n.operator == operator) for operator in layers}

    assert counted["ConvTranspose"] == layers["ConvTranspose"]
    assert layers["Conv"] <= counted["Conv"] < 4 * layers["Conv"]


def test_one_convolution_by_hand(tmp_path: Path) -> None:
    """8 x 3 x 3 x 5 weights, 2 x 8 x 6 x 4 outputs of 4 bytes; 2 x 3 x 8 x 8 inputs; 8 biases."""
    rng = np.random.default_rng(0)
    weights = [
        numpy_helper.from_array(rng.normal(size=s).astype(np.float32), n) for n, s in (("w", (8, 3, 3, 5)), ("b", (8,)))
    ]
    ends = [
        helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in (("x", (2, 3, 8, 8)), ("y", (2, 8, 6, 4)))
    ]
    node = helper.make_node("Conv", ["x", "w", "b"], ["y"], name="conv")
    graph = helper.make_graph([node], "one", ends[:1], ends[1:], weights)
    path = tmp_path / "one.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)

    (one,) = time_nodes(path, OrtOptions(optimizations=False), 0.0).nodes

    assert (one.name, one.operator) == ("conv", "Conv")
    assert one.multiply_adds == 8 * 3 * 3 * 5 * 2 * 6 * 4
    assert one.moved_bytes == 4 * (8 * 3 * 3 * 5 + 8 + 2 * 8 * 6 * 4 + 2 * 3 * 8 * 8)


def test_a_node_that_cannot_run_alone_leaves_the_others(shared_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    repeated = nodes._repeated

    def refused(node: onnx.NodeProto, copies: int, graph: nodes._Graph) -> onnx.ModelProto:
        if node.op_type == "Add":
            raise Fail("no such thing\nat all")
        return repeated(node, copies, graph)

    monkeypatch.setattr(nodes, "_repeated", refused)

    found = time_nodes(shared_bundle / "model.onnx", OrtOptions(), 0.0)

    assert set(found.problems.values()) == {"no such thing"}
    assert len(found.problems) == 2
    assert "Add" not in {node.operator for node in found.nodes}
    assert "ConvTranspose" in {node.operator for node in found.nodes}


def test_nodes_for_which_there_is_no_time_are_named(shared_bundle: Path) -> None:
    found = time_nodes(shared_bundle / "model.onnx", OrtOptions(), 0.0, limit_s=0.0)

    assert found.nodes == ()
    assert set(found.problems.values()) == {"the time budget was used up"}


@pytest.mark.gpu
@pytest.mark.skipif(CUDA_PROBLEM is not None, reason=f"no CUDA: {CUDA_PROBLEM}")
@pytest.mark.parametrize("nhwc", [False, True])
def test_nodes_of_a_gpu_are_timed_in_either_layout(shared_bundle: Path, nhwc: bool) -> None:
    found = time_nodes(shared_bundle / "model.onnx", OrtOptions(Provider.CUDA, nhwc=nhwc), 0.01)

    assert found.problems == {}
    layers = [layer for layer in fd.inspect(shared_bundle).layers if layer.multiply_adds]
    assert sum(node.multiply_adds for node in found.nodes) == sum(layer.multiply_adds for layer in layers)
