"""Measures what a device can do at best: a large matrix product per precision, and a large copy."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from math import prod
from typing import Any

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.engine.cases import Precision
from benchmarks.engine.peers.pytorch import set_tf32
from fcn_deploy.choices import Provider
from fcn_deploy.graph import Layer
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.run_graph import open_graph


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


# Rows of the square factors, and bytes copied: large enough that neither launch costs nor caches count.
_CPU_ROWS, _GPU_ROWS = 2048, 8192
_CPU_BYTES, _GPU_BYTES = 2**28, 2**31
_DTYPES = {
    Precision.FP32: torch.float32,
    Precision.TF32: torch.float32,
    Precision.FP16: torch.float16,
    Precision.BF16: torch.bfloat16,
}


def measure_ceilings(
    provider: Provider, precisions: tuple[Precision, ...], threads: int | None, seconds: float
) -> Ceilings:
    """The best of repeated products and copies, `seconds` of each."""
    torch.set_num_threads(threads or torch.get_num_threads())
    on_cpu = provider is Provider.CPU
    device = torch.device("cpu" if on_cpu else "cuda")
    rows = _CPU_ROWS if on_cpu else _GPU_ROWS
    size = _CPU_BYTES if on_cpu else _GPU_BYTES
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    copy_s = _best(lambda: target.copy_(source), device, seconds)
    products = {str(precision): rows**3 / _product_s(precision, rows, device, seconds) for precision in precisions}
    if on_cpu and Precision.FP32 in precisions:
        # The libraries behind PyTorch do not use the widest vectors of every maker's processors; ONNX Runtime's do.
        other = rows**3 / _onnxruntime_product_s(rows, threads, seconds)
        products[str(Precision.FP32)] = max(products[str(Precision.FP32)], other)
    if not on_cpu:
        # The process waits for its second turn while the rows run: it must not hold memory that they need.
        del source, target
        torch.cuda.empty_cache()
    return Ceilings(2 * size / copy_s, products)


def _product_s(precision: Precision, rows: int, device: torch.device, seconds: float) -> float:
    set_tf32(on=precision is Precision.TF32)
    # Random, because products of constants run faster than real ones on some GPUs.
    generator = torch.Generator(device).manual_seed(0)
    left, right = (torch.randn(rows, rows, generator=generator, device=device).to(_DTYPES[precision]) for _ in range(2))
    result = torch.empty_like(left)
    return _best(lambda: torch.mm(left, right, out=result), device, seconds)


def _onnxruntime_product_s(rows: int, threads: int | None, seconds: float) -> float:
    left = np.random.default_rng(0).standard_normal((rows, rows), dtype=np.float32)
    with open_graph(product_graph(rows), OrtOptions(threads=threads)) as runner:
        bound = runner.bind()
        bound.upload({"left": left})
        return _best(bound.run, torch.device("cpu"), seconds)


def product_graph(rows: int) -> ir.Model:
    """A graph that multiplies its input by a constant, which the runtime may lay out as it likes best."""
    kind, shape = ir.TensorType(ir.DataType.FLOAT), ir.Shape([rows, rows])
    left = ir.Value(name="left", type=kind, shape=shape)
    factor = np.random.default_rng(1).standard_normal((rows, rows), dtype=np.float32)
    right = ir.Value(name="right", type=kind, shape=shape, const_value=ir.tensor(factor, name="right"))
    node = ir.node("MatMul", [left, right])
    (product,) = node.outputs
    product.name, product.type, product.shape = "product", kind, shape
    graph = ir.Graph([left], [product], nodes=[node], initializers=[right], opset_imports={"": 18}, name="product")
    return ir.Model(graph, ir_version=10)


def _best(call: Callable[[], object], device: torch.device, seconds: float) -> float:
    """Seconds of the fastest of many calls, after one that does not count."""
    call()
    end, best = time.perf_counter() + seconds, float("inf")
    while time.perf_counter() < end:
        _wait(device)
        start = time.perf_counter()
        call()
        _wait(device)
        best = min(best, time.perf_counter() - start)
    return best


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
