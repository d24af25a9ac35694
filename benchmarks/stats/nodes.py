"""The time of each node of a graph on a GPU, where a runtime's own profile shows no more than launches.

Every node of the graph as ONNX Runtime runs it, after its fusions and in its layout, is run alone: once in a graph, and
`COPIES` times. The difference over the further copies is what one takes without launching it and waiting for it; on a
GPU both are captured CUDA graphs. Weights and inputs are noise of the node's shapes and types, and the inputs lie in
the GPU's cache as far as they fit, as they do behind the node that makes them.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from benchmarks.stats import timing
from fcn_deploy.choices import Provider
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.runtime.ort_options import OrtOptions

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
        multiply_adds=counted.get(name) or _profiled_multiply_adds(arguments),
        moved_bytes=sum(int(arguments.get(size, 0)) for size in _SIZES),
    )


def _profiled_multiply_adds(arguments: Mapping[str, Any]) -> int:
    """Of a convolution, fused or not: each weight is used once per output position of every image."""
    inputs, outputs = (
        [next(iter(shape.values())) for shape in arguments[key]] for key in ("input_type_shape", "output_type_shape")
    )
    if arguments["op_name"] not in ("Conv", "FusedConv") or len(inputs) < 2:
        return 0
    return int(prod(inputs[1]) * outputs[0][0] * prod(outputs[0][2:]))


COPIES = 9
_WARM_UPS = 3
# Domain of ONNX Runtime's own operators with channels last; files that it writes do not import it.
CHANNELS_LAST = "com.ms.internal.nhwc"
_NOISE = np.random.default_rng(0).standard_normal(2**12)


@dataclass(frozen=True)
class NodeTimes:
    """The nodes of one graph.

    Attributes:
        nodes: those that could be timed, in the order they run in.
        problems: why others could not, by name.
    """

    nodes: tuple[NodeTime, ...]
    problems: Mapping[str, str]


@dataclass(frozen=True)
class _Tensor:
    """Element type (of ONNX) and shape of a value, and its content where that matters."""

    kind: int
    shape: tuple[int, ...]
    content: npt.NDArray[Any] | None = None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * int(helper.tensor_dtype_to_np_dtype(self.kind).itemsize)

    def noise(self) -> npt.NDArray[Any]:
        """The content, or small noise of that shape and type."""
        if self.content is not None:
            return self.content
        dtype = helper.tensor_dtype_to_np_dtype(self.kind)
        scaled = _NOISE * (0.1 if np.issubdtype(dtype, np.floating) else 20.0)
        return np.resize((np.abs(scaled) if dtype.kind == "u" else scaled).astype(dtype), self.shape)


@dataclass(frozen=True)
class _Graph:
    """A graph as ONNX Runtime runs it, and what is known of its values by name."""

    model: onnx.ModelProto
    values: Mapping[str, _Tensor]

    def named(self, names: Iterable[str]) -> list[tuple[str, _Tensor]]:
        """These values, each once; names of inputs that are left out are empty."""
        return [(name, self.values[name]) for name in dict.fromkeys(names) if name]


def time_nodes(path: Path, options: OrtOptions, seconds: float, limit_s: float = float("inf")) -> NodeTimes:
    """Time every node of a model.

    Args:
        path: the model.
        options: how it is run; on CUDA its nodes are captured in any case.
        seconds: of samples, for each of a node's two graphs.
        limit_s: after which no further node is begun.

    Raises:
        ProviderError: the provider asked for would not run.
        BundleError: ONNX Runtime refuses the model.
    """
    nodes, problems, end = [], {}, time.monotonic() + limit_s
    with tempfile.TemporaryDirectory() as folder:
        graph = _as_run(path, options, Path(folder))
        for node in graph.model.graph.node:
            if time.monotonic() > end:
                problems[node.name] = "there was no time for it"
                continue
            try:
                nodes.append(_timed(node, graph, options, seconds, Path(folder)))
            except Exception as error:  # ONNX Runtime's exceptions share no base below Exception
                problems[node.name] = (str(error).splitlines() or [type(error).__name__])[0]
    return NodeTimes(tuple(nodes), problems)


def _as_run(path: Path, options: OrtOptions, folder: Path) -> _Graph:
    plain = replace(options, cuda_graph=False)
    with OrtRunner(path, plain, profile=folder / "profile", optimized=folder / "optimized.onnx") as runner:
        runner.bind().run()
        events = node_events(runner.end_profiling())
    # Large weights stay where the model has them; of these only type and shape are wanted.
    model = onnx.load(folder / "optimized.onnx", load_external_data=False)
    values = {given.name: _of_type(given.type.tensor_type) for given in model.graph.input}
    for tensor in model.graph.initializer:
        inline = tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.data_type == onnx.TensorProto.INT64
        content = numpy_helper.to_array(tensor) if inline else None
        values[tensor.name] = _Tensor(tensor.data_type, tuple(tensor.dims), content)
    for node in model.graph.node:
        for event in events.get(node.name, ())[:1]:
            made = zip(node.output, event["args"]["output_type_shape"], strict=False)
            values |= {name: _of_event(shape) for name, shape in made if name}
    return _Graph(model, values)


def _timed(node: onnx.NodeProto, graph: _Graph, options: OrtOptions, seconds: float, folder: Path) -> NodeTime:
    how = replace(options, cuda_graph=options.provider is Provider.CUDA, optimizations=False)
    medians = []
    for copies in (1, COPIES):
        path = folder / f"node-{copies}.onnx"
        onnx.save(_repeated(node, copies, graph), path)
        medians.append(_median_ns(path, graph, how, seconds))
    taken = max(0.0, (medians[1] - medians[0]) / (COPIES - 1))
    moved = sum(tensor.nbytes for _, tensor in graph.named((*node.input, *node.output)))
    return NodeTime(node.name, node.op_type, taken, _multiply_adds(node, graph.values), moved)


def _median_ns(path: Path, graph: _Graph, options: OrtOptions, seconds: float) -> float:
    with OrtRunner(path, options) as runner:
        bound = runner.bind()
        bound.upload({spec.name: graph.values[spec.name].noise() for spec in runner.inputs})
        for _ in range(_WARM_UPS):
            bound.run()
        return float(np.median(timing.sample(bound.run, seconds)))


def _repeated(node: onnx.NodeProto, copies: int, graph: _Graph) -> onnx.ModelProto:
    """A model of nothing but `copies` of a node, all of which read the same."""
    constants = {tensor.name for tensor in graph.model.graph.initializer}
    read, made = graph.named(node.input), graph.named(node.output)
    inputs = [_value(name, tensor) for name, tensor in read if name not in constants]
    outputs = [_value(f"{name}/{copy}", tensor) for copy in range(copies) for name, tensor in made]
    weights = [numpy_helper.from_array(tensor.noise(), name) for name, tensor in read if name in constants]
    nodes = [_copy(node, copy) for copy in range(copies)]
    version = next(entry.version for entry in graph.model.opset_import if entry.domain == "")
    opsets = [*graph.model.opset_import, helper.make_opsetid(CHANNELS_LAST, version)]
    repeated = helper.make_graph(nodes, "node", inputs, outputs, weights)
    return helper.make_model(repeated, opset_imports=opsets, ir_version=graph.model.ir_version)


def _copy(node: onnx.NodeProto, number: int) -> onnx.NodeProto:
    copy = onnx.NodeProto()
    copy.CopyFrom(node)
    copy.name = f"{node.name}/{number}"
    copy.output[:] = [f"{name}/{number}" if name else "" for name in node.output]
    return copy


def _multiply_adds(node: onnx.NodeProto, values: Mapping[str, _Tensor]) -> int:
    """Each weight of a convolution is used once per output position, of a transposed one once per input position."""
    if node.op_type not in ("Conv", "ConvTranspose", "FusedConv"):
        return 0
    shape = values[node.input[0] if node.op_type == "ConvTranspose" else node.output[0]].shape
    positions = shape[1:-1] if node.domain == CHANNELS_LAST else shape[2:]
    return prod(values[node.input[1]].shape) * shape[0] * prod(positions)


def _value(name: str, tensor: _Tensor) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, tensor.kind, tensor.shape)


def _of_type(kind: onnx.TypeProto.Tensor) -> _Tensor:
    return _Tensor(kind.elem_type, tuple(dimension.dim_value for dimension in kind.shape.dim))


def _of_event(shape: Mapping[str, Sequence[int]]) -> _Tensor:
    """A value as a profile states it: its type's name in ONNX's text, and its shape."""
    ((name, sizes),) = shape.items()
    return _Tensor(onnx.TensorProto.DataType.Value(name.upper()), tuple(sizes))
