"""How a node slides over its map: kernel, stride and padding along height and width, or why that is not known here."""

import onnx_ir as ir

from exporters.passes.static import constant, constant_ints, static_shape
from fcn_deploy.regions import Sliding

POINTWISE = frozenset({"Relu", "Clip", "BatchNormalization"})

Motions = tuple[Sliding, Sliding]


def motions_of(node: ir.Node, *, first: bool) -> Motions | str | None:
    """How a node slides; None for one that treats every pixel alike, text for one that is not known here.

    Padding is neutral where the frame begins (it makes the moat), and in a max pool (which ignores it).
    """
    if node.op_type in POINTWISE and node.domain == "":
        return _pointwise(node)
    readers = {"Conv": _conv, "MaxPool": _pool, "Pad": _pad}
    if node.op_type not in readers or node.domain:
        return f"{node.op_type} is not followed"
    return readers[node.op_type](node, first)


def _pointwise(node: ir.Node) -> str | None:
    if len(node.outputs) > 1:
        return f"{node.op_type} has {len(node.outputs)} outputs"
    dynamic = [v for v in node.inputs[1:] if v is not None and ir.convenience.get_const_tensor(v) is None]
    return f"{node.op_type} has inputs that are not constant" if dynamic else None


def _conv(node: ir.Node, first: bool) -> Motions | str:
    return _window_operator(node, node.inputs[1], neutral=first)


def _pool(node: ir.Node, first: bool) -> Motions | str:
    del first
    return "MaxPool gives indices" if len(node.outputs) > 1 else _window_operator(node, None, neutral=True)


def _window_operator(node: ir.Node, weight: ir.Value | None, *, neutral: bool) -> Motions | str:
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return f"{node.op_type} with auto_pad"
    shape = static_shape(weight) if weight is not None else None
    kernels = node.attributes.get_ints("kernel_shape", shape[2:] if shape else ()) or ()
    if len(kernels) != 2 or (weight is not None and ir.convenience.get_const_tensor(weight) is None):
        return f"{node.op_type} is not of two dimensions and constant weights"
    strides = node.attributes.get_ints("strides", (1, 1)) or (1, 1)
    dilations = node.attributes.get_ints("dilations", (1, 1)) or (1, 1)
    pads = node.attributes.get_ints("pads", (0, 0, 0, 0)) or (0, 0, 0, 0)
    ceil = bool(node.attributes.get_int("ceil_mode", 0))
    height, width = (
        Sliding(kernels[i], strides[i], pads[i], pads[i + 2], dilations[i], ceil, neutral) for i in range(2)
    )
    return height, width


def _pad(node: ir.Node, first: bool) -> Motions | str:
    if node.attributes.get_string("mode", "constant") != "constant":
        return "Pad is not constant"
    amounts = constant_ints(node.inputs[1]) if len(node.inputs) > 1 else None
    if amounts is None or len(amounts) != 8 or len(node.inputs) > 3:
        return "Pad is not static, of four dimensions and without axes"
    if any(amounts[i] for i in (0, 1, 4, 5)) or min(amounts) < 0:
        return "Pad reaches beyond height and width, or crops"
    if not first and any(_fill_values(node)):
        return "Pad fills with something else than 0"
    return Sliding(1, begin=amounts[2], end=amounts[6], neutral=first), Sliding(
        1, begin=amounts[3], end=amounts[7], neutral=first
    )


def _fill_values(node: ir.Node) -> tuple[float, ...]:
    found = constant(node.inputs[2]) if len(node.inputs) > 2 else None
    return tuple(float(x) for x in found.ravel()) if found is not None else ()


def constant_fill(node: ir.Node) -> float:
    """What a Pad, or a Conv with padding, fills with."""
    return (_fill_values(node) or (0.0,))[0] if node.op_type == "Pad" else 0.0
