"""ONNX Runtime's profile of a session, as one figure per node.

Events of category `Node` state a node's kernel time in microseconds, the types and shapes it read and wrote, and their
bytes; from the shapes follow its multiply-adds. On a GPU these would be times of launches: only CPU profiles are read.
"""

import json
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

_SUFFIX = "_kernel_time"
_SIZES = ("activation_size", "parameter_size", "output_size")


@dataclass(frozen=True)
class NodeTime:
    """One node as a runtime ran it.

    Attributes:
        name: after the runtime's own fusions, so not always one of the graph's.
        operator: ONNX's, or the runtime's own.
        time_ns: median over the profiled runs.
        multiply_adds: of a convolution or transposed convolution; else 0. Channels the runtime pads with count.
        moved_bytes: inputs, weights and outputs, each once.
    """

    name: str
    operator: str
    time_ns: float
    multiply_adds: int
    moved_bytes: int

    def to_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        return asdict(self)


def read_profile(path: Path, counted: Mapping[str, int], skip_runs: int) -> tuple[NodeTime, ...]:
    """Every node of a profile, slowest first; the first `skip_runs` runs of each are left out.

    Args:
        path: ONNX Runtime's JSON file.
        counted: multiply-adds of the graph's nodes by name, for those that the runtime left as they were.
        skip_runs: how many runs warmed up.
    """
    events = node_events(path)
    nodes = [_node(name, found[skip_runs:], counted) for name, found in events.items() if found[skip_runs:]]
    return tuple(sorted(nodes, key=lambda node: -node.time_ns))


def node_events(path: Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """The events of a profile that are runs of a node, by the node's name, in order."""
    events: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for event in json.loads(path.read_text(encoding="utf-8")):
        if event.get("cat") == "Node" and event["name"].endswith(_SUFFIX):
            events[event["name"].removesuffix(_SUFFIX)].append(event)
    return events


def _node(name: str, events: Sequence[Mapping[str, Any]], counted: Mapping[str, int]) -> NodeTime:
    arguments = events[0]["args"]
    return NodeTime(
        name=name,
        operator=arguments["op_name"],
        time_ns=float(np.median([event["dur"] for event in events])) * 1000,
        multiply_adds=counted.get(name) or _multiply_adds(arguments),
        moved_bytes=sum(int(arguments.get(size, 0)) for size in _SIZES),
    )


def _multiply_adds(arguments: Mapping[str, Any]) -> int:
    """Of a convolution, fused or not: each weight is used once per output position of every image."""
    inputs, outputs = (
        [next(iter(shape.values())) for shape in arguments[key]] for key in ("input_type_shape", "output_type_shape")
    )
    if arguments["op_name"] not in ("Conv", "FusedConv") or len(inputs) < 2:
        return 0
    return int(prod(inputs[1]) * outputs[0][0] * prod(outputs[0][2:]))
