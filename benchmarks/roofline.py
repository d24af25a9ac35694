"""What a device can do at best, and how close to it a network comes.

Two things bound every latency: multiply-adds over the rate of the largest matrix product, and bytes over the rate of
the largest copy, both measured on the same device in the same run. The larger of the two times is the limit. The bytes
of a whole network are the fewest possible: input, weights and output, each once.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import onnx_ir as ir

from fcn_deploy.graph import Layer


@dataclass(frozen=True)
class Work:
    """What has to be done for one run, whatever does it.

    Attributes:
        multiply_adds: of all convolutions.
        least_bytes: input, weights and output, each moved once.
    """

    multiply_adds: int
    least_bytes: int


@dataclass(frozen=True)
class Ceilings:
    """What a device did at best.

    Attributes:
        copied_bytes_per_s: bytes read plus bytes written by a large copy.
        multiply_adds_per_s: of a large matrix product, by precision.
    """

    copied_bytes_per_s: float
    multiply_adds_per_s: Mapping[str, float]

    def limit_ns(self, work: Work, precision: str) -> float | None:
        """The shortest time `work` can take in that arithmetic, or None when its ceiling was not measured."""
        rate = self.multiply_adds_per_s.get(precision)
        if rate is None:
            return None
        return max(work.multiply_adds / rate, work.least_bytes / self.copied_bytes_per_s) * 1e9

    def at_best(self, other: "Ceilings | None") -> "Ceilings":
        """The higher of two measurements of the same device, figure by figure."""
        if other is None:
            return self
        rates = {
            name: max(rate, other.multiply_adds_per_s.get(name, 0.0)) for name, rate in self.multiply_adds_per_s.items()
        }
        return Ceilings(max(self.copied_bytes_per_s, other.copied_bytes_per_s), rates)

    def to_dict(self) -> dict[str, Any]:
        """Every figure, for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, document: Mapping[str, Any]) -> "Ceilings":
        """Read back what `to_dict` wrote."""
        rates = {str(name): float(rate) for name, rate in document["multiply_adds_per_s"].items()}
        return cls(float(document["copied_bytes_per_s"]), rates)


def work_of(model: ir.Model, counted: Sequence[Layer], element_bytes: int) -> Work:
    """The work of a graph: the multiply-adds of its layers, and its ends and weights in `element_bytes` each."""
    ends = (*model.graph.inputs, *model.graph.outputs)
    sizes = [prod(int(str(n)) for n in value.shape) for value in ends if value.shape is not None]
    parameters = sum(layer.parameters for layer in counted)
    return Work(sum(layer.multiply_adds for layer in counted), (sum(sizes) + parameters) * element_bytes)
