"""Computes the constant part of a map: the part that does not depend on the image.

Rim and moat do not depend on the image, nor on its size as long as the raster of the strides stays the same. They are
therefore computed on the smallest image that has the same rims, a fraction of a percent of a run, and spread out.
"""

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx.reference
import onnx_ir as ir

from exporters.passes.trace import Regions, Trace, constant_fill
from fcn_deploy.graph import static_shape
from fcn_deploy.regions import Region, image_region
from fcn_deploy.runtime.run_graph import run_graph

Array = npt.NDArray[Any]


def constants_of(model: ir.Model, trace: Trace, values: Sequence[ir.Value]) -> dict[ir.Value, Array]:
    """Compute each map with its live pixels replaced by the moat: 1 x C x height x width, in the map's dtype.

    `model` is the graph before any rewrite.
    """
    if not values:
        return {}
    sizes = _probe(trace, values, 0), _probe(trace, values, 1)
    found = _evaluate(_part(model, trace, values, sizes), constant_fill(trace.steps[0].node))
    return {value: _spread(constants, trace.regions[value]) for value, constants in zip(values, found, strict=True)}


def _probe(trace: Trace, values: Sequence[ir.Value], axis: int) -> int:
    """Return the smallest image size at which all of `values` have the same rims, not adjacent to each other."""
    raster = prod(step.slidings[axis].stride for step in trace.steps if step.slidings is not None)
    shape = static_shape(trace.steps[0].source)
    image = shape[2 + axis] if shape is not None else 0
    for size in range(image % raster or raster, image, raster):
        found = _regions(trace, axis, size)
        if all(found[v].rim == trace.regions[v][axis].rim and found[v].settled.size > 0 for v in values):
            return size
    return image


def _regions(trace: Trace, axis: int, size: int) -> dict[ir.Value, Region]:
    """Return the regions along one axis for an image of `size`."""
    found: dict[ir.Value, Region] = {}
    for step in trace.steps:
        given = found.get(step.source) or image_region(size)
        found[step.output] = step.slidings[axis].region(given) if step.slidings is not None else given
    return found


def _spread(constants: Array, regions: Regions) -> Array:
    """Spread the constants of a small map to the regions of a map with the same rims."""
    rows, columns = (_indices(region, constants.shape[2 + axis]) for axis, region in enumerate(regions))
    return np.asarray(constants[:, :, rows[:, None], columns])


def _indices(region: Region, size: int) -> npt.NDArray[np.int64]:
    """Return, for every index of a map, the index of the same value in a map of `size` with the same rims."""
    indices = np.full(region.size, region.rim[0], dtype=np.int64)
    begin, end = region.rim
    indices[:begin] = np.arange(begin)
    indices[region.size - end :] = np.arange(size - end, size)
    return indices


def _part(model: ir.Model, trace: Trace, values: Sequence[ir.Value], sizes: tuple[int, int]) -> ir.Model:
    """Extract the part of the graph that computes `values`, for one image of `sizes`."""
    source = trace.steps[0].source
    graph = ir.convenience.extract(model.graph, [source], values)
    for node in graph:
        for output in node.outputs:
            output.shape = None
    graph.inputs[0].shape = ir.Shape((1, (static_shape(source) or (1, 1))[1], *sizes))
    graph.inputs[0].type = source.type
    for output, value in zip(graph.outputs, values, strict=True):
        output.type = value.type
    return ir.Model(graph, ir_version=model.ir_version)


def _evaluate(part: ir.Model, fill: float) -> list[Array]:
    """Run `part` on an image that is `fill` everywhere."""
    (given,) = part.graph.inputs
    dtype = given.dtype.numpy() if given.dtype is not None else np.dtype(np.float32)
    image = {str(given.name): np.full(static_shape(given) or (), fill, dtype=dtype)}
    if dtype != np.float32:
        # On CPUs, ONNX Runtime has only float32 convolutions.
        return list(onnx.reference.ReferenceEvaluator(ir.to_proto(part)).run(None, image))
    made = run_graph(part, image)
    return [made[str(value.name)] for value in part.graph.outputs]
