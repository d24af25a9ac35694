import itertools
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
from onnx.reference import ReferenceEvaluator

from exporters.onnx import OPSETS, OnnxOptions, export_graph
from fcn_deploy import Geometry, NetworkSpec, UsageError, Variant
from fcn_deploy.graph import layers, operator_counts
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.weights import random_network
from fcn_deploy.onnx_file import write_model
from fcn_deploy.runtime.ort import OrtRunner
from tests.messages import states
from tests.reference import relative_error

ALL = list(itertools.product(Variant, Geometry))


def network(variant: Variant = Variant.FCN8S, geometry: Geometry = Geometry.FLOOR, divisor: int = 32) -> FCN:
    return random_network(NetworkSpec(variant, geometry, num_classes=5, channel_divisor=divisor), 0)


def image(options: OnnxOptions) -> np.ndarray:
    return np.random.default_rng(0).normal(0, 60, options.shape).astype(np.float32)


@pytest.mark.parametrize(("variant", "geometry"), ALL)
def test_the_graph_computes_the_network_in_another_runtime(variant: Variant, geometry: Geometry) -> None:
    """ONNX's own reference evaluator: plain NumPy, no code in common with PyTorch or ONNX Runtime."""
    options = OnnxOptions(height=45, width=33)
    net = network(variant, geometry, divisor=64)
    given = image(options)

    model = ir.to_proto(export_graph(net, options))
    found = np.asarray(next(iter(ReferenceEvaluator(model).run(None, {"image": given}))))

    with torch.inference_mode():
        expected = net.double()(torch.from_numpy(given).double()).numpy()
    assert found.shape == (1, 5, 45, 33)
    assert relative_error(expected, found) < 2e-6


@pytest.mark.parametrize("variant", Variant)
def test_inputs_outputs_and_operators(variant: Variant) -> None:
    graph = export_graph(network(variant), OnnxOptions(height=64, width=96, batch=2)).graph

    (given,), (made,) = graph.inputs, graph.outputs
    assert (given.name, given.dtype, tuple(given.shape or ())) == ("image", ir.DataType.FLOAT, (2, 3, 64, 96))
    assert (made.name, made.dtype, tuple(made.shape or ())) == ("logits", ir.DataType.FLOAT, (2, 5, 64, 96))
    assert {node.op_type for node in graph} <= {"Conv", "Relu", "MaxPool", "ConvTranspose", "Slice", "Add"}


def test_crops_are_constants() -> None:
    graph = export_graph(network(), OnnxOptions(64, 64)).graph

    slices = [node for node in graph if node.op_type == "Slice"]
    assert len(slices) == 6
    assert all(v is not None and v.const_value is not None for node in slices for v in node.inputs[1:])


def test_names_follow_the_layers() -> None:
    model = export_graph(network(), OnnxOptions(64, 64))

    names = [node.name for node in model.graph]
    convolutions = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    assert len(set(names)) == len(names)
    assert names[:5] == ["conv1_1", "relu1_1", "conv1_2", "relu1_2", "pool1"]
    assert {*convolutions, "fc6", "relu6", "score_fr", "upscore2", "fuse_pool4", "upscore_pool4", "upscore8"} <= set(
        names
    )
    assert {n.name: n.outputs[0].name for n in model.graph}["pool3"] == "pool3"
    assert set(network().state_dict()) <= set(model.graph.initializers)
    assert all("node_" not in name and "val_" not in name for name in [*names, *model.graph.initializers])


def test_nothing_of_the_exporting_machine_remains() -> None:
    text = str(ir.to_proto(export_graph(network(), OnnxOptions(64, 64))))

    assert "pkg.torch" not in text
    assert "stack_trace" not in text
    assert str(Path(__file__).parent) not in text
    assert ".py" not in text


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_on_offer_is_written_and_runs(tmp_path: Path, opset: int) -> None:
    options = OnnxOptions(48, 48, opset=opset)
    net = network()
    model = export_graph(net, options)
    write_model(model, tmp_path / "model.onnx")

    with OrtRunner(tmp_path / "model.onnx") as runner:
        found = runner.run({"image": image(options)})["logits"]

    with torch.inference_mode():
        expected = net(torch.from_numpy(image(options))).numpy()
    assert model.opset_imports[""] == opset
    onnx.checker.check_model(tmp_path / "model.onnx", full_check=True)
    assert relative_error(expected, found) < 2e-6


@pytest.mark.parametrize(("options", "facts"), [
    ({"opset": 17}, "opset 17 18 23"),
    ({"opset": 99}, "opset 99 18 23"),
    ({"batch": 0}, "batch 0 1"),
    ({"height": 5000, "width": 5000}, "1 5000 16777216"),
    ({"batch": 10**8}, "100000000 500 16777216"),
])  # fmt: skip
def test_options_out_of_bounds(options: dict[str, int], facts: str) -> None:
    with pytest.raises(UsageError, check=states(facts)):
        OnnxOptions(**options)


def test_a_network_in_training_mode_is_exported_in_eval_mode() -> None:
    counts = operator_counts(export_graph(network().train(), OnnxOptions(48, 48)))

    assert "Dropout" not in counts


def test_the_exporter_keeps_no_weights_alive() -> None:
    import gc
    import weakref

    net = network()
    weight = weakref.ref(net.get_parameter("fc6.weight"))
    graph = export_graph(net, OnnxOptions(48, 48))

    del net, graph
    gc.collect()
    assert weight() is None


@pytest.mark.parametrize(("variant", "geometry", "multiply_adds", "parameters"), [
    (Variant.FCN16S, Geometry.FLOOR, 175.5, 134_815_973),
    (Variant.FCN8S, Geometry.FLOOR, 175.6, 134_489_759),
    (Variant.FCN32S, Geometry.CAFFE, 181.4, 136_152_917),
])  # fmt: skip
@pytest.mark.full
def test_multiply_adds_and_parameters_are_the_published_ones(
    variant: Variant, geometry: Geometry, multiply_adds: float, parameters: int
) -> None:
    """The other three networks are counted in test_full_size.py."""
    net = random_network(NetworkSpec(variant, geometry), 0)

    found = layers(export_graph(net, OnnxOptions()))

    assert round(sum(layer.multiply_adds for layer in found) / 1e9, 1) == multiply_adds
    assert sum(layer.parameters for layer in found) == parameters
