"""Measures the highest rates of a device: of large products, of a convolution on a CPU, and of large copies."""

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
# A layer that takes about as long as the product: 9.7 G multiply-adds.
_CHANNELS, _PIXELS, _KERNEL = 512, 64, 3
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
        # Its convolutions are faster than its products on some.
        others = (
            rows**3 / _onnxruntime_s(product_graph(rows), threads, seconds),
            (_CHANNELS * _PIXELS * _KERNEL) ** 2
            / _onnxruntime_s(convolution_graph(_CHANNELS, _PIXELS), threads, seconds),
        )
        products[str(ComputePrecision.FP32)] = max(products[str(ComputePrecision.FP32)], *others)
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


def _onnxruntime_s(model: ir.Model, threads: int | None, seconds: float) -> float:
    with open_graph(model, OrtOptions(threads=threads)) as runner:
        (spec,) = runner.inputs
        bound = runner.bind()
        bound.upload({spec.name: np.random.default_rng(0).standard_normal(spec.shape, dtype=np.float32)})
        return _best(bound.run, torch.device("cpu"), seconds)


def product_graph(rows: int) -> ir.Model:
    """Build a graph that multiplies its input by a constant, whose layout the runtime may choose."""
    return _graph_of("MatMul", (rows, rows), (rows, rows), [])


def convolution_graph(channels: int, pixels: int) -> ir.Model:
    """Build a graph of one 3x3 convolution that keeps the size of its square map and its number of channels."""
    weights = (channels, channels, _KERNEL, _KERNEL)
    return _graph_of("Conv", (1, channels, pixels, pixels), weights, [ir.AttrInt64s("pads", [_KERNEL // 2] * 4)])


def _graph_of(operator: str, shape: Sequence[int], constant: Sequence[int], attributes: Sequence[ir.Attr]) -> ir.Model:
    """Build a graph that applies an operator to an input `x` and noise; its output `y` has the input's shape."""
    kind = ir.TensorType(ir.DataType.FLOAT)
    x = ir.Value(name="x", type=kind, shape=ir.Shape(shape))
    noise = np.random.default_rng(1).standard_normal(constant, dtype=np.float32)
    factor = ir.Value(name="factor", type=kind, shape=ir.Shape(constant), const_value=ir.tensor(noise, name="factor"))
    node = ir.node(operator, [x, factor], {attribute.name: attribute for attribute in attributes})
    (y,) = node.outputs
    y.name, y.type, y.shape = "y", kind, ir.Shape(shape)
    graph = ir.Graph([x], [y], nodes=[node], initializers=[factor], opset_imports={"": 18}, name="ceiling")
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
