"""Types of layers, in the two forms in which TensorRT's inspector reports them.

Both texts have the shape that NVIDIA's documentation shows: TensorRT 10 in "Engine Inspector", TensorRT 11 in the guide
for migrating IEngineInspector.
"""

import json

import pytest

import fcn_deploy as fd
from exporters.tensorrt.layers import inspected, listed_layers, require_precision
from fcn_deploy.artifact.engine import LayerTypes
from fcn_deploy.choices import Precision
from fcn_deploy.runtime.tensorrt_flavour import Message
from tests.messages import missing


def tensor(name: str, **words: str) -> dict[str, object]:
    return {"Name": name, "Location": "Device", "Dimensions": [1, 8, 4, 4], **words}


TEN = json.dumps({
    "Layers": [
        {
            "Name": "conv1_1 + relu1_1", "LayerType": "CaskConvolution",
            "Inputs": [tensor("image", **{"Format/Datatype": "Row major linear FP32"})],
            "Outputs": [tensor("a", **{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"})],
        },
        {
            "Name": "pool1", "LayerType": "CaskPooling",
            "Inputs": [tensor("a", **{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"})],
            "Outputs": [tensor("b", **{"Format/Datatype": "Channel major FP16 format where channel % 8 == 0"})],
        },
        {
            "Name": "cast", "LayerType": "Reformat",
            "Inputs": [tensor("c", **{"Format/Datatype": "Row major linear FP32"})],
            "Outputs": [tensor("d", **{"Format/Datatype": "Row major linear FP32"})],
        },
        {"Name": "signal", "LayerType": "Signal", "Inputs": [], "Outputs": []},
    ],
    "Bindings": ["image", "logits"],
})  # fmt: skip
ELEVEN = json.dumps({
    "Layers": [
        {
            "Name": "conv1_1", "LayerType": "gemm",
            "Inputs": [tensor("pixels", Format="Row major linear", Datatype="UInt8")],
            "Outputs": [tensor("a", Format="Row major linear", Datatype="BFloat16")],
        },
        {
            "Name": "conv1_2", "LayerType": "gemm",
            "Inputs": [tensor("a", Format="Row major linear", Datatype="Int8")],
            "Outputs": [tensor("b", Format="Row major linear", Datatype="Float")],
        },
    ],
    "I/O Tensors": [{"Name": "pixels", "IOMode": "Input", "DataType": "UInt8"}],
})  # fmt: skip


def test_the_narrowest_type_of_each_layer_counts() -> None:
    assert inspected(TEN) == LayerTypes("engine", {"fp16": 2, "fp32": 1})
    assert inspected(ELEVEN) == LayerTypes("engine", {"bf16": 1, "int8": 1})


# From TensorRT-RTX 1.7.1.116, with dimensions and strides left out.
LISTED = """Layers:
Name: __myl_CastConc_myl0_0, LayerType: kgen, Inputs: [ { Name: image, Datatype: Float, Format: (Linear) Row major \
linear format }], Constants: [], Outputs: [ { Name: relu1_1, Datatype: Half, Format: (NHWC) }], StreamId: 0
Name: conv1_1_U1_myl0_1, LayerType: correlation, Inputs: [ { Name: relu1_1, Datatype: Half, Format: (NHWC) }], \
Constants: [ { Name: w, Datatype: Half }, { Name: a, Datatype: Float }], Outputs: [ { Name: b, Datatype: Half }]
Name: conv1_2, LayerType: correlation, Inputs: [ { Name: b, Datatype: Float }], Constants: [ { Name: w, Datatype: \
Half }], Outputs: [ { Name: c, Datatype: Float }]

I/O Tensors:
 Name: image, IOMode: Input, DataType: Float, Location: Device
"""


def test_the_builders_list_counts_what_layers_read_and_write() -> None:
    said = [Message(3, "LayerType: Datatype: Half"), Message(4, LISTED)]

    assert listed_layers(said) == LayerTypes("builder", {"fp16": 2, "fp32": 1})
    assert listed_layers(said[:1]) is None


def test_an_inspector_that_names_no_types() -> None:
    """So it is without ProfilingVerbosity.DETAILED: layers are names only."""
    assert inspected('{"Layers": ["conv1_1 + relu1_1", "pool1"], "Bindings": ["image"]}') is None


def test_an_engine_that_fell_back_to_float_is_an_error() -> None:
    require_precision(LayerTypes("engine", {"fp16": 1, "fp32": 9}), Precision.FP16)

    with pytest.raises(fd.ParityError) as caught:
        require_precision(LayerTypes("engine", {"fp32": 10}), Precision.FP16)

    assert missing("fp16 10 fp32", caught.value.problem) == []
    assert caught.value.exit_code == 5
    assert LayerTypes("engine", {"fp16": 1, "fp32": 9}).share("fp16") == 0.1
    assert LayerTypes("engine", {}).share("fp16") == 0
