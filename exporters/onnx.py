"""Export a network as an ONNX graph with fixed shapes and readable names."""

import ast
import contextlib
import io
import logging
import re
import warnings
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from itertools import count

import onnx
import onnx_ir as ir
import torch
from torch import Tensor, nn

from fcn_deploy.choices import Precision
from fcn_deploy.errors import UsageError, check_range
from fcn_deploy.graph import subgraphs
from fcn_deploy.model_info import INPUT_NAME, OUTPUT_NAME
from fcn_deploy.models.logits import Logits
from fcn_deploy.models.vgg import INPUT_CHANNELS

# The exporter writes 18 natively and newer opsets by conversion; newer ones miss CUDA kernels in ONNX Runtime.
DEFAULT_OPSET = 18
OPSETS = range(18, 24)
# bfloat16 convolutions came with this operator set.
BF16_OPSET = 22
MAX_PIXELS = 4096 * 4096
_SCOPES = "pkg.torch.onnx.name_scopes"
_EXPORTER_METADATA = ("pkg.torch", "namespace")
# Modules around the network are attributes of this name: `ExportWrapper` here, and `Logits` of a user's own network.
_WRAPPER = "wrapped"


@dataclass(frozen=True)
class OnnxOptions:
    """The fixed shape and the operator set of an exported graph.

    Attributes:
        height: rows of the input, in pixels.
        width: columns of the input, in pixels.
        batch: images per run.
        opset: version of ONNX's operator set.

    Raises:
        UsageError: a value out of its bounds.
    """

    height: int = 500
    width: int = 500
    batch: int = 1
    opset: int = DEFAULT_OPSET

    def __post_init__(self) -> None:
        check_range("batch", self.batch, 1, option="--batch")
        if self.batch * self.height * self.width > MAX_PIXELS:
            raise UsageError(
                f"{self.batch} x {self.height} x {self.width} pixels: at most {MAX_PIXELS} fit one run "
                "(conv1_1's map alone then takes 4 GB)",
                remedy="Pass a smaller --size or --batch.",
            )
        check_range("opset", self.opset, OPSETS[0], OPSETS[-1], option="--opset")

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """Return N x 3 x H x W of the input."""
        return self.batch, INPUT_CHANNELS, self.height, self.width


def default_opset(precision: Precision) -> int:
    """Return the oldest operator set that supports the precision, because most runtimes support it."""
    return BF16_OPSET if precision is Precision.BF16 else DEFAULT_OPSET


def check_opset(opset: int, precision: Precision) -> None:
    """Refuse operator sets that do not support the precision.

    Raises:
        UsageError: bfloat16 before opset 22.
    """
    if precision is Precision.BF16 and opset < BF16_OPSET:
        raise UsageError(
            f"opset {opset} has no bfloat16 convolutions; {BF16_OPSET} and later do",
            remedy=f"Pass --opset {BF16_OPSET}, or --precision fp16.",
        )


class ExportWrapper(nn.Module):
    """Gives a network the names of the graph's input and output."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.wrapped = network

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of `image`; the argument's name becomes the input's."""
        logits: Tensor = self.wrapped(image)
        return logits


def export_graph(network: nn.Module, options: OnnxOptions) -> ir.Model:
    """Export `network` in eval mode; its graph shares the network's weights in memory.

    The input is `image`, float32 N x 3 x H x W, the output `logits`, float32 N x K x H x W. Nodes and values are
    named after layers; every shape and crop is a constant.
    """
    return graph_of(trace_network(network, options), network)


def trace_network(network: nn.Module, options: OnnxOptions) -> ir.Model:
    """Export `network` in eval mode with PyTorch's own names; raises what PyTorch raises for what it cannot trace."""
    wrapper = ExportWrapper(network).eval()
    with _quiet_exporter():
        program = torch.onnx.export(
            wrapper,
            (torch.zeros(options.shape),),
            dynamo=True,
            opset_version=options.opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            verbose=False,
        )
    if program is None or program.model.opset_imports[""] != options.opset:
        raise UsageError(f"torch.onnx.export cannot write opset {options.opset}", remedy="Omit --opset.")
    return program.model


def graph_of(traced: ir.Model, network: nn.Module) -> ir.Model:
    """Return what `trace_network` made of `network`, with nodes and values named after layers."""
    name_after_layers(traced, wrappers=2 if isinstance(network, Logits) else 1)
    return _detached(traced)


@contextlib.contextmanager
def _quiet_exporter() -> Iterator[None]:
    """Silence what the exporter logs and prints: torchvision, its own deprecations, graphs that it cannot trace.

    What goes wrong is raised as well.
    """
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with (
            warnings.catch_warnings(),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(io.StringIO()),
        ):
            warnings.simplefilter("ignore", (FutureWarning))
            warnings.simplefilter("ignore", (DeprecationWarning))
            yield
    finally:
        logging.disable(before)


def _detached(model: ir.Model) -> ir.Model:
    """Return a copy that holds the only reference to the weights.

    onnxscript's rewrite rules keep the last graph, with all its weights, until the process ends.
    """
    copy = model.clone()
    for value in model.graph.initializers.values():
        value.const_value = None
    return copy


def name_after_layers(model: ir.Model, wrappers: int = 1) -> None:
    """Rename a freshly exported graph in place after the modules it came from, and drop the exporter's metadata.

    `wrappers` is how many modules of this toolkit are around the network.
    """
    graph = model.graph
    scopes = [_layer_of(node, wrappers) for node in graph]
    shared, seen = Counter(scopes), Counter[str]()
    for node, scope in zip(graph, scopes, strict=True):
        seen[scope] += 1
        node.name = scope if shared[scope] == 1 else f"{scope}/{node.op_type.lower()}_{seen[scope]}"
    for value in list(graph.initializers.values()):
        value.name = (value.name or "").removeprefix(f"{_WRAPPER}." * wrappers)
    name_after_nodes(model)
    _drop_notes(model)


def name_after_nodes(model: ir.Model) -> None:
    """Name every inner value after its producer, and every constant of integers after its first reader.

    Where such a name is taken, the next free one is used: `name_2`, `name_3`, ...
    """
    graph = model.graph
    inner = [output for node in graph for output in node.outputs if output.name and not output.is_graph_output()]
    taken = _names_but_of(inner, model)
    for output in inner:
        producer = output.producer()
        output.name = free_name(str(producer.name if producer is not None else output.name), taken)
    for node in graph:
        for formal, value in zip(_formal_inputs(node), node.inputs, strict=False):
            if value is None or not value.is_initializer() or value.dtype != ir.DataType.INT64:
                continue
            if next(iter(value.uses())).node is node and not value.is_graph_output():
                taken.discard(str(value.name))
                value.name = free_name(f"{node.name}/{formal}", taken)


def _names_but_of(values: Collection[ir.Value], model: ir.Model) -> set[str]:
    """Return the names of all values but `values`: those of subgraphs too, which would hide others of that name."""
    graph, omitted = model.graph, set(values)
    known = [*graph.inputs, *graph.outputs, *graph.initializers.values()]
    for node in graph.all_nodes():
        known += node.outputs
        for inner in subgraphs(node.attributes.values()):
            known += [*inner.inputs, *inner.initializers.values()]
    return {value.name for value in known if value.name and value not in omitted}


def free_name(name: str, taken: set[str]) -> str:
    """Return the first of `name`, `name_2`, ... that is not taken, and take it."""
    free = next(one for one in (name if n == 1 else f"{name}_{n}" for n in count(1)) if one not in taken)
    taken.add(free)
    return free


def name_as_before(model: ir.Model, before: ir.Model) -> None:
    """Name each node after the one that computed its first output in the graph `before` a rewrite.

    A node the rewrite brought in is named after its reader and its operator. Of nodes of one name, as those of a layer
    that was split, all but the last get numbers, because ONNX Runtime refuses equal names.
    """
    names = {_first_output(node): (node.name or "").partition("/slice_")[0] for node in before.graph}
    taken: set[str] = set()
    for node in reversed(model.graph):
        readers = [use.node.name for output in node.outputs[:1] for use in output.uses()]
        made_up = f"{readers[0]}/{node.op_type.lower()}" if readers else node.name
        node.name = free_name(names.get(_first_output(node)) or str(made_up), taken)
    name_after_nodes(model)


def _first_output(node: ir.Node) -> str | None:
    return node.outputs[0].name if node.outputs else None


def _layer_of(node: ir.Node, wrappers: int) -> str:
    """Return the innermost module of a node, `fuse_pool4/crop`, from the scopes that the exporter recorded."""
    scopes = ast.literal_eval(node.metadata_props[_SCOPES])
    # The last scope is the operation itself, the first the outer wrapper.
    inner, prefix = str(scopes[-2]), f"{_WRAPPER}." * wrappers
    if not inner.startswith(prefix) and f"{inner}.".startswith(_WRAPPER):
        return OUTPUT_NAME if wrappers > 1 else _WRAPPER
    return inner.removeprefix(prefix).replace(".", "/")


def reason_of(error: BaseException, file: str) -> str:
    """Return the line that matters of what torch.onnx.export raises: the innermost cause's first, and where it was.

    `file` is the name of the user's own.
    """
    texts = [str(error)]
    while error.__cause__ is not None:
        error = error.__cause__
        texts.append(str(error))
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    places = re.findall(rf"{re.escape(file)}\W+(?:line )?([0-9]+)", "\n".join(texts))
    where = f" ({file}, line {places[-1]})" if places else ""
    return f"{type(error).__name__}: {lines[0] if lines else ''}{where}"


def _formal_inputs(node: ir.Node) -> list[str]:
    if not onnx.defs.has(node.op_type, node.domain):
        return []
    schema = onnx.defs.get_schema(node.op_type, node.version or onnx.defs.onnx_opset_version(), node.domain)
    return [formal.name for formal in schema.inputs]


def _drop_notes(model: ir.Model) -> None:
    """Drop the exporter's metadata: source paths of the exporting machine, and a stack trace per node."""
    holders = [model, model.graph, *model.graph, *(v for node in model.graph for v in node.outputs)]
    for holder in [*holders, *model.graph.inputs, *model.graph.initializers.values()]:
        for key in [k for k in holder.metadata_props if k.startswith(_EXPORTER_METADATA)]:
            del holder.metadata_props[key]
