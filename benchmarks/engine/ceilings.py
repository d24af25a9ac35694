"""Measures the highest rates of a device: a large matrix product per precision, and a large copy."""

import time
from collections.abc import Callable, Sequence
from math import prod

import numpy as np
import onnx_ir as ir
import torch

from benchmarks.engine.cases import ComputePrecision
from benchmarks.engine.pytorch import set_tf32
from benchmarks.report.results import Ceilings, WorkEstimate
from fcn_deploy.choices import Provider
from fcn_deploy.graph import Layer
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.run_graph import open_graph


def work_of(model: ir.Model, counted: Sequence[Layer], element_bytes: int) -> WorkEstimate:
    """Return the work of a graph: the multiply-adds of its layers; inputs, outputs and weights once each."""
    values = (*model.graph.inputs, *model.graph.outputs)
    sizes = [prod(int(str(n)) for n in value.shape) for value in values if value.shape is not None]
    parameters = sum(layer.parameters for layer in counted)
    least_bytes = (sum(sizes) + parameters) * element_bytes
    multiply_adds, direct = sum(layer.multiply_adds for layer in counted), sum(n.direct_multiply_adds for n in counted)
    return WorkEstimate(multiply_adds, least_bytes, direct)


# Rows of the square factors, and bytes copied: large enough that launch costs and caches are negligible.
_CPU_ROWS, _GPU_ROWS = 2048, 8192
_CPU_BYTES, _GPU_BYTES = 2**28, 2**31
_DTYPES = {
    ComputePrecision.FP32: torch.float32,
    ComputePrecision.TF32: torch.float32,
    ComputePrecision.FP16: torch.float16,
    ComputePrecision.BF16: torch.bfloat16,
}


def measure_ceilings(
    provider: Provider, precisions: tuple[ComputePrecision, ...], threads: int | None, seconds: float
) -> Ceilings:
    """Return the best rates of repeated products and copies, `seconds` of each."""
    torch.set_num_threads(threads or torch.get_num_threads())
    on_cpu = provider is Provider.CPU
    device = torch.device("cpu" if on_cpu else "cuda")
    rows = _CPU_ROWS if on_cpu else _GPU_ROWS
    size = _CPU_BYTES if on_cpu else _GPU_BYTES
    source, target = (torch.ones(size, dtype=torch.uint8, device=device) for _ in range(2))
    copy_s = _best(lambda: target.copy_(source), device, seconds)
    products = {str(precision): rows**3 / _product_s(precision, rows, device, seconds) for precision in precisions}
    if on_cpu and ComputePrecision.FP32 in precisions:
        # PyTorch's libraries do not use the widest vectors on every vendor's processors; ONNX Runtime does.
        other = rows**3 / _onnxruntime_product_s(rows, threads, seconds)
        products[str(ComputePrecision.FP32)] = max(products[str(ComputePrecision.FP32)], other)
    if not on_cpu:
        # The process waits for its second turn while the rows run, so it must not hold memory that they need.
        del source, target
        torch.cuda.empty_cache()
    return Ceilings(2 * size / copy_s, products)


def _product_s(precision: ComputePrecision, rows: int, device: torch.device, seconds: float) -> float:
    set_tf32(on=precision is ComputePrecision.TF32)
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
    """Build a graph that multiplies its input by a constant, whose layout the runtime may choose."""
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
    """Return the seconds of the fastest of many calls, after one warm-up call."""
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
