"""The time of each node of a graph: from ONNX Runtime's profile on a CPU, and by timing nodes alone on a GPU.

A profile on a GPU shows only launches. `time_nodes` therefore runs every node alone, as ONNX Runtime runs it after its
fusions and in its layout: once in a graph, and `COPIES` times. The difference divided by the number of further copies
is the time of one node without launching and waiting; on a GPU both graphs are captured. Weights and inputs are noise
of the node's shapes and types, and inputs are in the GPU's cache as far as they fit, as in the whole graph.
"""

import json
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from benchmarks.report.results import NodeTime
from benchmarks.stats import timing
from fcn_deploy.choices import Provider
from fcn_deploy.graph import multiply_adds
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.runtime.ort_options import OrtOptions

_SUFFIX = "_kernel_time"
# ONNX Runtime adds this to the names of products that it fuses with the Transpose before them.
_FUSED_TRANSPOSE = "/MatmulTransposeFusion"
_SIZES = ("activation_size", "parameter_size", "output_size")


def read_profile(path: Path, counted: Mapping[str, int], skip_runs: int) -> tuple[NodeTime, ...]:
    """Return every node of a profile, slowest first.

    Args:
        path: ONNX Runtime's JSON file.
        counted: multiply-adds of the graph's nodes by name; used for nodes that kept their names.
        skip_runs: number of warm-up runs at the beginning, which are skipped.
    """
    events = node_events(path)
    nodes = [_node(name, found[skip_runs:], counted) for name, found in events.items() if found[skip_runs:]]
    return tuple(sorted(nodes, key=lambda node: -node.time_ns))


def node_events(path: Path) -> Mapping[str, Sequence[Mapping[str, Any]]]:
    """Return the events of a profile that are runs of a node, by the node's name, in order."""
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
        multiply_adds=counted.get(name.partition(_FUSED_TRANSPOSE)[0]) or _profiled_multiply_adds(arguments),
        moved_bytes=sum(int(arguments.get(size, 0)) for size in _SIZES),
    )


def _profiled_multiply_adds(arguments: Mapping[str, Any]) -> int:
    """Count multiply-adds from the shapes of a profile, in which the runtime may have padded channels."""
    inputs, outputs = (
        [tuple(next(iter(shape.values()))) for shape in arguments[key]]
        for key in ("input_type_shape", "output_type_shape")
    )
    return multiply_adds(arguments["op_name"], inputs[0], inputs[1], outputs[0]) if len(inputs) > 1 else 0


COPIES = 9
_WARM_UPS = 3
# Domain of ONNX Runtime's channels-last operators; the files that it writes do not import it.
CHANNELS_LAST = "com.ms.internal.nhwc"
_NOISE = np.random.default_rng(0).standard_normal(2**12)


@dataclass(frozen=True)
class NodeTimes:
    """The nodes of one graph."""

    nodes: tuple[NodeTime, ...]  # those that could be timed, in the order they run in
    problems: Mapping[str, str]  # why other nodes could not be timed, by name


@dataclass(frozen=True)
class _Tensor:
    """The ONNX element type and shape of a value, and its content where it matters, e.g. for shapes."""

    kind: int
    shape: tuple[int, ...]
    content: npt.NDArray[Any] | None = None

    @property
    def nbytes(self) -> int:
        return prod(self.shape) * int(helper.tensor_dtype_to_np_dtype(self.kind).itemsize)

    def value(self, name: str) -> onnx.ValueInfoProto:
        """Return its declaration as an input or output."""
        return helper.make_tensor_value_info(name, self.kind, self.shape)

    def noise(self) -> npt.NDArray[Any]:
        """Return the content, or small noise of that shape and type."""
        if self.content is not None:
            return self.content
        dtype = helper.tensor_dtype_to_np_dtype(self.kind)
        scaled = _NOISE * (0.1 if np.issubdtype(dtype, np.floating) else 20.0)
        return np.resize((np.abs(scaled) if dtype.kind == "u" else scaled).astype(dtype), self.shape)


@dataclass(frozen=True)
class _Graph:
    """A graph as ONNX Runtime runs it, and its values by name."""

    model: onnx.ModelProto
    values: Mapping[str, _Tensor]

    def named(self, names: Iterable[str]) -> list[tuple[str, _Tensor]]:
        """Return these values, each once, without the empty names of omitted inputs."""
        return [(name, self.values[name]) for name in dict.fromkeys(names) if name]


def time_nodes(path: Path, options: OrtOptions, seconds: float, limit_s: float = float("inf")) -> NodeTimes:
    """Time every node of a model.

    Args:
        path: the model.
        options: of the session; on CUDA the nodes are always captured.
        seconds: of samples, for each of a node's two graphs.
        limit_s: seconds after which no further node is begun.

    Raises:
        ProviderError: the provider asked for would not run.
        BundleError: ONNX Runtime refuses the model.
    """
    nodes, problems, end = [], {}, time.monotonic() + limit_s
    with tempfile.TemporaryDirectory() as folder:
        graph = _as_run(path, options, Path(folder))
        for node in graph.model.graph.node:
            if time.monotonic() > end:
                problems[node.name] = "the time budget was used up"
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
    # Large weights stay in their file, because only their type and shape are needed.
    model = onnx.load(folder / "optimized.onnx", load_external_data=False)
    given = {value.name: value.type.tensor_type for value in model.graph.input}
    values = {n: _Tensor(t.elem_type, tuple(size.dim_value for size in t.shape.dim)) for n, t in given.items()}
    for tensor in model.graph.initializer:
        inline = tensor.data_location != onnx.TensorProto.EXTERNAL and tensor.data_type == onnx.TensorProto.INT64
        content = numpy_helper.to_array(tensor) if inline else None
        values[tensor.name] = _Tensor(tensor.data_type, tuple(tensor.dims), content)
    for node in model.graph.node:
        for event in events.get(node.name, ())[:1]:
            outputs = zip(node.output, event["args"]["output_type_shape"], strict=False)
            values |= {name: _of_event(shape) for name, shape in outputs if name}
    return _Graph(model, values)


def _timed(node: onnx.NodeProto, graph: _Graph, options: OrtOptions, seconds: float, folder: Path) -> NodeTime:
    alone = replace(options, cuda_graph=options.provider is Provider.CUDA, optimizations=False)
    medians = []
    for copies in (1, COPIES):
        path = folder / f"node-{copies}.onnx"
        onnx.save(_repeated(node, copies, graph), path)
        medians.append(_median_ns(path, graph, alone, seconds))
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
    """Build a model that consists of `copies` of a node, all with the same inputs."""
    constants = {tensor.name for tensor in graph.model.graph.initializer}
    node_inputs, node_outputs = graph.named(node.input), graph.named(node.output)
    inputs = [tensor.value(name) for name, tensor in node_inputs if name not in constants]
    outputs = [tensor.value(f"{name}/{copy}") for copy in range(copies) for name, tensor in node_outputs]
    weights = [numpy_helper.from_array(tensor.noise(), name) for name, tensor in node_inputs if name in constants]
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
    if len(node.input) < 2 or not all(node.input[:2]):
        return 0
    image, weights, output = (values[name].shape for name in (*node.input[:2], node.output[0]))
    return multiply_adds(node.op_type, image, weights, output, channels_last=node.domain == CHANNELS_LAST)


def _of_event(shape: Mapping[str, Sequence[int]]) -> _Tensor:
    """Return a value from the notation of a profile: the name of its type in ONNX's text, and its shape."""
    ((name, sizes),) = shape.items()
    return _Tensor(onnx.TensorProto.DataType.Value(name.upper()), tuple(sizes))
