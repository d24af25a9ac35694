"""What FCN-8s at 500x500 should take on a GPU at best, by the cost model's figures: to be compared with what it takes.

Run as `python -m benchmarks.gpu.predicted [fp32|fp16]`; prints a Markdown table. A node takes the longer of its
multiply-adds over the rate of matrix products and its bytes over the rate of copies; ReLUs are nodes of their own, as
in ONNX Runtime's CUDA provider.
"""

import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from benchmarks.table import markdown_lines
from exporters.onnx import OnnxOptions, export_graph
from exporters.optimize import Target
from exporters.passes.cost import Machine, machine_of
from exporters.rewrite import exact_passes, rewrite
from exporters.simplify import simplify
from fcn_deploy.geometry import Variant
from fcn_deploy.graph import Layer, layers
from fcn_deploy.model_info import NetworkSpec, Precision
from fcn_deploy.models.init import random_network

_GRAPH_BYTES = 4
_PARTS = {"Relu": "ReLUs", "MaxPool": "pools", "Concat": "constants put around windows", "Expand": None}
_COLUMNS = ("part", "plain: nodes", "G multiply-adds", "MB", "µs", "ours: nodes", "G multiply-adds", "MB", "µs")


@dataclass(frozen=True)
class Part:
    """Nodes of one kind.

    Attributes:
        nodes: how many.
        multiply_adds: of all of them.
        moved_bytes: of their inputs, weights and outputs, each once per node.
        limit_s: seconds of all of them, each at its limit.
    """

    nodes: int
    multiply_adds: int
    moved_bytes: float
    limit_s: float

    @classmethod
    def of(cls, found: Iterable[Layer], machine: Machine) -> "Part":
        """The part that consists of these layers of a float32 graph, on a machine whose elements may be smaller."""
        kept = list(found)
        elements = [layer.moved_bytes / _GRAPH_BYTES for layer in kept]
        each = [
            max(layer.multiply_adds / machine.multiply_adds_per_s, machine.copy_seconds(n))
            for layer, n in zip(kept, elements, strict=True)
        ]
        total = sum(layer.multiply_adds for layer in kept)
        return cls(len(kept), total, sum(elements) * machine.element_bytes, sum(each))

    @property
    def cells(self) -> tuple[str, ...]:
        """Texts for a table."""
        return (
            str(self.nodes),
            f"{self.multiply_adds / 1e9:.1f}",
            f"{self.moved_bytes / 1e6:.0f}",
            f"{self.limit_s * 1e6:.0f}",
        )


def parts(graph: ir.Model, machine: Machine) -> Mapping[str, Part]:
    """The limits of a graph's nodes by what they do, and of all of them."""
    found: dict[str, list[Layer]] = {}
    for layer in layers(graph):
        name = part_of(layer)
        if name is not None:
            found.setdefault(name, []).append(layer)
    made = {name: Part.of(kept, machine) for name, kept in found.items()}
    return made | {"all": Part.of([layer for kept in found.values() for layer in kept], machine)}


def part_of(layer: Layer) -> str | None:
    """What a node does; None for constants, which are worked out once, when the graph is loaded."""
    if layer.operator in _PARTS:
        return _PARTS[layer.operator]
    block = re.match(r"conv\d|fc\d", layer.name) if layer.operator == "Conv" else None
    return block[0] if block else "scores and up-sampling"


def table(precision: Precision) -> list[str]:
    """The plain graph and ours, part by part, as lines of Markdown."""
    machine = machine_of(Target.CUDA, precision)
    plain = export_graph(random_network(NetworkSpec(Variant.FCN8S), 0), OnnxOptions())
    ours, _ = rewrite(simplify(plain)[0], Target.CUDA, exact_passes(Target.CUDA, precision))
    one, other = parts(plain, machine), parts(ours, machine)
    nothing = Part(0, 0, 0.0, 0.0)
    names = [name for name in other if name != "all"] + ["all"]
    body = [(name, *one.get(name, nothing).cells, *other[name].cells) for name in names]
    return markdown_lines(_COLUMNS, body)


def main(arguments: Sequence[str]) -> None:
    """Print the table."""
    precision = Precision(arguments[0]) if arguments else Precision.FP16
    sys.stdout.write(f"{machine_of(Target.CUDA, precision).source}\n\n" + "\n".join(table(precision)) + "\n")


if __name__ == "__main__":
    main(sys.argv[1:])
