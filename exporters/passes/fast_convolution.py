"""Computes convolutions of stride 1 with a fraction of their multiplications, by Toom-Cook's algorithm.

docs/fast-convolution.md explains the form of the graph. The weights stay as they are in the file: they are transformed
by nodes that have only constant inputs, which a runtime computes once, when it loads the graph.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, prod

import numpy as np
import onnx_ir as ir

from exporters.passes.cost import Machine
from exporters.passes.edit import (
    Array,
    Attribute,
    Rewrite,
    add_constant,
    attribute_ints,
    constant,
    cut,
    first_input,
    node_after,
    only_reader,
    replace_value,
    required_constant,
    reshape_after,
)
from exporters.passes.toom_cook import ACROSS, DOWN, Transform
from exporters.passes.zero_frame import use_zero_frame
from fcn_deploy.graph import static_shape
from fcn_deploy.model_info import DIRECT_KEY, FIELD_KEY, LIVE_KEY, TRANSFORM_KEY, WINDOW_KEY
from fcn_deploy.regions import Span

# A smaller gain is lost where neighbours have to change the layout of their maps.
_LEAST_GAIN = 0.1
_NODES = 8
_POOL = {"kernel_shape": (2, 2), "strides": (2, 2)}

Pair = tuple[int, int]


@dataclass(frozen=True)
class Tiling:
    """How a convolution is cut into tiles: one transform per axis."""

    batch: int
    channels: int  # of the input
    filters: int  # channels of the output
    source: Pair  # height and width of the input
    output: Pair  # height and width of the output
    begin_pads: Pair  # padding at the top and on the left
    axes: tuple[Transform, Transform]  # down and across

    def __str__(self) -> str:
        down, across = self.axes
        return f"F({down.outputs}x{across.outputs}, {down.taps}x{across.taps})"

    @property
    def multiply_adds(self) -> int:
        """Return the multiply-adds of the convolution as it is."""
        return self.batch * self.channels * self.filters * prod(a.taps for a in self.axes) * prod(self.output)

    @property
    def product_multiply_adds(self) -> int:
        """Return the multiply-adds of the products."""
        return self.batch * self.channels * self.filters * self.products * prod(self.tiles)

    @property
    def elements(self) -> tuple[int, ...]:
        """Return the elements of the input, of every map between two nodes, and of all tiles of the output."""
        (down, across), (rows, columns) = self.axes, self.tiles
        source, target = self.batch * self.channels, self.batch * self.filters
        return (
            source * prod(self.source),
            source * down.products * rows * self.source[1],
            source * self.products * rows * columns,
            target * self.products * rows * columns,
            target * down.products * rows * columns * across.outputs,
            target * prod(self.made),
        )

    @property
    def products(self) -> int:
        """Return the number of products of a tile."""
        return self.axes[0].products * self.axes[1].products

    @property
    def tiles(self) -> Pair:
        """Return the number of tiles down and across."""
        down, across = (ceil(size / axis.outputs) for size, axis in zip(self.output, self.axes, strict=True))
        return down, across

    @property
    def made(self) -> Pair:
        """Return the height and width of all tiles together."""
        return self.tiles[0] * self.axes[0].outputs, self.tiles[1] * self.axes[1].outputs

    @property
    def end_pads(self) -> Pair:
        """Return how far the tiles read beyond the input, at the bottom and on the right."""
        made, axes, source, begin_pads = self.made, self.axes, self.source, self.begin_pads
        bottom, right = (made[i] + axes[i].taps - 1 - source[i] - begin_pads[i] for i in (0, 1))
        return bottom, right


@dataclass(frozen=True)
class Convolution:
    """A convolution, and its best tiling if it can have one."""

    node: ir.Node
    tiling: Tiling | None


class FastConvolution(Rewrite):
    """Replaces convolutions where transforms and fewer products are cheaper on `machine`."""

    name = "fast-convolution"
    same_sums = False

    def __init__(self, machine: Machine, down: Mapping[int, Sequence[Transform]] = DOWN) -> None:
        self._machine, self._down = machine, down

    def more_careful(self) -> "FastConvolution | None":
        """Return the rewrite that splits long kernels in both directions."""
        return FastConvolution(self._machine, ACROSS) if self._down is DOWN else None

    def find(self, model: ir.Model) -> Sequence[Convolution]:
        """Return every convolution of two dimensions and more than one tap."""
        nodes = [node for node in model.graph if node.op_type == "Conv" and node.domain == ""]
        shapes = [(node, static_shape(node.inputs[1])) for node in nodes]
        return [
            Convolution(node, self._cheapest(node))
            for node, shape in shapes
            if shape is None or (len(shape) == 4 and prod(shape[2:]) > 1)
        ]

    def check(self, found: Convolution) -> str | None:
        """Refuse other kinds of convolutions, and those that would gain little."""
        if found.tiling is None:
            return _refusal(found.node)
        now, then = direct_seconds(found.tiling, self._machine), fast_seconds(found.tiling, self._machine)
        if then > now * (1 - _LEAST_GAIN):
            return f"{found.tiling} takes {then * 1e3:.1f} ms, and it {now * 1e3:.1f} ms as it is, on the target"
        return None

    def rewrite(self, model: ir.Model, found: Convolution) -> str:
        """Replace the node by the nodes of its transforms and products."""
        use_zero_frame(model, found.node)
        tiling = self._cheapest(found.node)
        if tiling is None:
            raise ValueError(f"{found.node.name} has no tiling")
        apply_tiling(model, found.node, tiling)
        return str(tiling)

    def _cheapest(self, node: ir.Node) -> Tiling | None:
        if _refusal(node):
            return None
        return min(tilings(node, self._down), key=lambda tiling: fast_seconds(tiling, self._machine))


def direct_seconds(tiling: Tiling, machine: Machine) -> float:
    """Return the time of the convolution as it is."""
    return machine.seconds(tiling.multiply_adds, tiling.elements[0] + tiling.elements[-1])


def fast_seconds(tiling: Tiling, machine: Machine) -> float:
    """Return the time of the convolution by transforms and products: each map between two nodes is written and read."""
    elements = tiling.elements
    moved = (2 * sum(elements) - elements[0] - elements[-1]) * machine.element_bytes
    cropped = machine.copy_seconds(2 * elements[-1]) if tiling.made != tiling.output else 0.0
    # Bias and activation are fused into a direct convolution.
    after = machine.copy_seconds(4 * elements[-1])
    products = tiling.product_multiply_adds / machine.products_per_s
    return products + moved / machine.transform_bytes_per_s + cropped + after + _NODES * machine.node_s


def _refusal(node: ir.Node) -> str | None:
    """Return why a convolution has no such form."""
    values = [value for value in (*node.inputs, *node.outputs) if value is not None]
    if any(static_shape(value) is None for value in values):
        return "its shapes are not fixed"
    weights = [value for value in node.inputs[1:] if value is not None]
    if any(constant(value) is None or value.is_graph_input() for value in weights):
        return "its weights are not constant"
    if node.outputs[0].dtype not in (ir.DataType.FLOAT, ir.DataType.DOUBLE):
        return f"transforms lose too much in {node.outputs[0].dtype}"
    return _other_kind(node)


def _other_kind(node: ir.Node) -> str | None:
    """Return what a convolution has besides padding, or None."""
    groups, taps = node.attributes.get_int("group", 1), (static_shape(node.inputs[1]) or ())[2:]
    if groups != 1:
        return f"it has {groups} groups"
    for name in ("strides", "dilations"):
        if any(n != 1 for n in attribute_ints(node, name)):
            return f"it has {name} {attribute_ints(node, name)}"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "its padding is not stated in numbers"
    if not set(taps) <= DOWN.keys():
        return f"there are no transforms for {'x'.join(map(str, taps))} taps"
    return None


def tilings(node: ir.Node, downs: Mapping[int, Sequence[Transform]] = DOWN) -> list[Tiling]:
    """Return every tiling of a convolution; `downs` has the transforms down, by the number of taps."""
    (batch, channels, *source), weight = static_shape(first_input(node)) or (), static_shape(node.inputs[1]) or ()
    output, pads = static_shape(node.outputs[0]) or (), attribute_ints(node, "pads", (0, 0, 0, 0))
    return [
        Tiling(batch, channels, weight[0], tuple(source), output[2:], pads[:2], (down, across))  # type: ignore[arg-type]
        for down in downs[weight[2]]
        for across in ACROSS[weight[3]]
    ]


class _Builder:
    """Adds nodes one after the other."""

    def __init__(self, model: ir.Model, start: ir.Value, name: str) -> None:
        self.model, self.last, self.name = model, start, name
        self.dtype = ir.DataType.FLOAT if start.dtype is None else start.dtype

    def add(
        self, what: str, operator: str, inputs: Sequence[ir.Value], shape: Sequence[int], **attributes: Attribute
    ) -> ir.Value:
        self.last = node_after(self.last, operator, inputs, f"{self.name}/{what}", shape, **attributes)
        return self.last

    def transform(
        self, what: str, operator: str, inputs: Sequence[ir.Value], shape: Sequence[int], **attributes: Attribute
    ) -> ir.Value:
        """Add a node one of whose inputs is a transform: a constant that is not trained."""
        made = self.add(what, operator, inputs, shape, **attributes)
        if (maker := made.producer()) is not None:
            index = next(index for index, value in enumerate(inputs) if value.is_initializer())
            maker.metadata_props[TRANSFORM_KEY] = str(index)
        return made

    def constant(self, what: str, array: Array) -> ir.Value:
        """Add a constant of the dtype of the map."""
        return add_constant(self.model, f"{self.name}/{what}", array.astype(self.dtype.numpy(), copy=False))

    def reshape(self, what: str, value: ir.Value, shape: Sequence[int]) -> ir.Value:
        self.last = reshape_after(self.model, self.last, value, shape, f"{self.name}/{what}")
        return self.last


def apply_tiling(model: ir.Model, node: ir.Node, tiling: Tiling) -> None:
    """Replace a convolution by the nodes of `tiling`; its output keeps its name.

    Where only a ReLU reads it, and only a pool the ReLU, the pool comes first: a bias and a ReLU keep the order of
    their inputs, so the largest of four stays the largest, and three nodes have a quarter of the map to move.
    """
    build = _Builder(model, first_input(node), str(node.name))
    weight, image = _weights(build, node, tiling), _inputs(build, first_input(node), tiling)
    lead = (tiling.batch,) if tiling.batch > 1 else ()
    shape = (*lead, tiling.products, tiling.filters, prod(tiling.tiles))
    made = build.add("products", "MatMul", [weight, image], shape)
    if (maker := made.producer()) is not None:
        maker.metadata_props[DIRECT_KEY] = str(tiling.multiply_adds)
    made = _outputs(build, made, tiling)
    relu, pool = _pool_behind(node)
    if pool is not None:
        height, width = (size // 2 for size in tiling.made)
        made = build.add("pool", "MaxPool", [made], (*_shape(made)[:2], height, width), **_POOL)
    last = pool or node
    made = _cropped(build, made, _shape(last.outputs[0]))
    if len(node.inputs) > 2 and node.inputs[2] is not None:
        bias = build.constant("bias_map", required_constant(node.inputs[2]).reshape(1, -1, 1, 1))
        made = build.add("bias", "Add", [made, bias], _shape(made))
    if relu is not None and pool is not None:
        made = build.add("relu", "Relu", [made], _shape(made))
    _take_place(made, last)
    for old in (pool, relu, node):
        if old is not None and old.graph is not None:
            model.graph.remove(old, safe=True)


def _pool_behind(node: ir.Node) -> tuple[ir.Node | None, ir.Node | None]:
    """Return the ReLU that alone reads a convolution, and the pool of 2x2 whole cells that alone reads the ReLU."""
    relu = only_reader(node.outputs[0])
    pool = only_reader(relu.outputs[0]) if relu is not None and relu.op_type == "Relu" else None
    if relu is None or pool is None or pool.op_type != "MaxPool" or len(pool.outputs) != 1:
        return None, None
    if not node.graph is relu.graph is pool.graph:  # a branch of an If reads it
        return None, None
    pooled = tuple(size // 2 for size in _shape(node.outputs[0])[2:])
    plain = not any(attribute_ints(pool, "pads")) and pool.attributes.get_string("auto_pad", "NOTSET") == "NOTSET"
    same = all(attribute_ints(pool, name, (1, 1)) == value for name, value in _POOL.items())
    whole = (static_shape(pool.outputs[0]) or ())[2:] == pooled and set(attribute_ints(pool, "dilations")) <= {1}
    return (relu, pool) if plain and same and whole else (None, None)


def _shape(value: ir.Value) -> tuple[int, ...]:
    shape = static_shape(value)
    if shape is None:
        raise ValueError(f"the shape of {value.name} is not fixed")
    return shape


def _cropped(build: _Builder, value: ir.Value, shape: tuple[int, ...]) -> ir.Value:
    """Cut rows and columns off at the bottom and on the right."""
    if _shape(value) != shape:
        height, width = shape[2:]
        value = cut(build.model, value, (Span(0, height - 1), Span(0, width - 1)), f"{build.name}/crop")
    build.last = value
    return value


_ABOUT_THE_MAP = (WINDOW_KEY, FIELD_KEY, LIVE_KEY)


def _take_place(made: ir.Value, node: ir.Node) -> None:
    """Let `made` stand for the output of `node`."""
    maker = made.producer()
    replace_value(node.outputs[0], made)
    if maker is not None:
        maker.name = node.name
        kept = {key: node.metadata_props[key] for key in _ABOUT_THE_MAP if key in node.metadata_props}
        maker.metadata_props.update(kept)


def _inputs(build: _Builder, image: ir.Value, tiling: Tiling) -> ir.Value:
    """Transform the input: B^T d B of every tile, [batch x] products x channels x tiles.

    ONNX Runtime's layout of channels in blocks leaves convolutions of three dimensions alone.
    """
    (height, width), planes = tiling.source, tiling.batch * tiling.channels
    (down, across), tiles = tiling.axes, tiling.tiles
    rows = build.reshape("planes", image, (planes, 1, 1, height, width))
    kernel = build.constant("down", down.input_transform[:, None, None, :, None])
    rows = build.transform(
        "rows",
        "Conv",
        [rows, kernel],
        (planes, down.products, 1, tiles[0], width),
        strides=(1, down.outputs, 1),
        pads=(0, tiling.begin_pads[0], 0, 0, tiling.end_pads[0], 0),
    )
    rows = build.reshape("row_planes", rows, (planes * down.products, 1, 1, tiles[0], width))
    kernel = build.constant("across", across.input_transform[:, None, None, None, :])
    both = build.transform(
        "columns",
        "Conv",
        [rows, kernel],
        (planes * down.products, across.products, 1, *tiles),
        strides=(1, 1, across.outputs),
        pads=(0, 0, tiling.begin_pads[1], 0, 0, tiling.end_pads[1]),
    )
    lead = (tiling.batch,) if tiling.batch > 1 else ()
    both = build.reshape("tiles", both, (*lead, tiling.channels, tiling.products, prod(tiles)))
    return build.add(
        "by_product",
        "Transpose",
        [both],
        (*lead, tiling.products, tiling.channels, prod(tiles)),
        perm=(0, 2, 1, 3) if lead else (1, 0, 2),
    )


def _weights(build: _Builder, node: ir.Node, tiling: Tiling) -> ir.Value:
    """Transform the weights: G g G^T of every pair of channels, products x filters x channels.

    Their file has one row per pair of channels, so that a runtime needs no copy of them to begin with.
    """
    (down, across), pairs = tiling.axes, tiling.filters * tiling.channels
    transform = build.constant("weight_transform", np.kron(down.weight_transform, across.weight_transform))
    taps = required_constant(node.inputs[1]).reshape(pairs, down.taps * across.taps)
    flat = build.constant("weight_taps", taps)
    made = build.transform("weight_products", "Gemm", [transform, flat], (tiling.products, pairs), transB=1)
    return build.reshape("weight", made, (tiling.products, tiling.filters, tiling.channels))


def _outputs(build: _Builder, products: ir.Value, tiling: Tiling) -> ir.Value:
    """Transform the products back: A^T m A of every tile, batch x filters x height x width, as large as all tiles.

    Transposes of the last two axes are fused into the products beside them.
    """
    (down, across), (tall, wide) = tiling.axes, tiling.made
    lead = (tiling.batch,) if tiling.batch > 1 else ()
    axes = tuple(range(len(lead)))
    cells = tiling.filters * prod(tiling.tiles)
    value = build.reshape("product_rows", products, (*lead, down.products, across.products, cells))
    value = build.add(
        "product_columns",
        "Transpose",
        [value],
        (*lead, down.products, cells, across.products),
        perm=(*axes, *(len(lead) + i for i in (0, 2, 1))),
    )
    transform = build.constant("output_across", across.output_transform.T)
    value = build.transform("wide", "MatMul", [value, transform], (*lead, down.products, cells, across.outputs))
    bands = tiling.filters * tiling.tiles[0]
    value = build.reshape("bands", value, (*lead, down.products, bands, wide))
    value = build.add(
        "by_band",
        "Transpose",
        [value],
        (*lead, bands, down.products, wide),
        perm=(*axes, *(len(lead) + i for i in (1, 0, 2))),
    )
    transform = build.constant("output_down", down.output_transform[None])
    value = build.transform("tall", "MatMul", [transform, value], (*lead, bands, down.outputs, wide))
    return build.reshape("map", value, (tiling.batch, tiling.filters, tall, wide))
