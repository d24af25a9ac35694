"""From an ONNX file to TensorRT's network, with every node it refuses named."""

from pathlib import Path
from typing import Any

from fcn_deploy.errors import UsageError
from fcn_deploy.runtime.base import TensorSpec
from fcn_deploy.runtime.tensorrt_flavour import Flavour

_LISTED = 10


def parsed(flavour: Flavour, builder: Any, path: Path) -> Any:
    """The strongly typed network of an ONNX file: each layer computes in the types that the file says.

    Raises:
        UsageError: TensorRT's parser refuses nodes of it; names all of them.
    """
    network = builder.create_network(flavour.network_flags())
    parser = flavour.trt.OnnxParser(network, flavour.log.logger)
    done = parser.parse_from_file(str(path))
    errors = [parser.get_error(index) for index in range(parser.num_errors)]
    if not done or errors:
        raise _refused(flavour, errors)
    return network


def specs(flavour: Flavour, network: Any) -> tuple[tuple[TensorSpec, ...], tuple[TensorSpec, ...]]:
    """What a network takes and what it gives."""
    inputs = [network.get_input(index) for index in range(network.num_inputs)]
    outputs = [network.get_output(index) for index in range(network.num_outputs)]
    return tuple(_spec(flavour, t) for t in inputs), tuple(_spec(flavour, t) for t in outputs)


def _spec(flavour: Flavour, tensor: Any) -> TensorSpec:
    import numpy as np

    return TensorSpec(tensor.name, tuple(tensor.shape), np.dtype(flavour.trt.nptype(tensor.dtype)).name)


def _refused(flavour: Flavour, errors: list[Any]) -> UsageError:
    lines = [f"  node {e.node()} {e.node_name() or 'without a name'} ({e.node_operator()}): {e.desc()}" for e in errors]
    rest = [f"  and {len(lines) - _LISTED} more"] if len(lines) > _LISTED else []
    return UsageError(
        "\n".join([f"{flavour} refuses {len(errors)} nodes of the graph:", *lines[:_LISTED], *rest]),
        remedy="Export with another --opset or --optimize simplify; nodes of other makers need a plugin, "
        "which this command does not load.",
    )
