"""What maps depend on, against NaN that spread through PyTorch's networks from single rows and columns."""

import re
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import fcn_deploy as fd
from benchmarks import zoo
from exporters.onnx import export_graph
from exporters.simplify import simplify
from fcn_deploy.dependence import Dependence, dependences
from fcn_deploy.models.logits import Logits
from fcn_deploy.models.modules import ModuleOptions
from fcn_deploy.models.weights import random_network
from fcn_deploy.regions import map_regions
from tests.exporters.passes.graphs import parsed, weights

NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[int, int]]] = {
    "FCN-8s": (lambda: random_network(fd.NetworkSpec(fd.Variant.FCN8S, channel_divisor=32), 0), (96, 64)),
    "U-Net": (lambda: zoo.UNet(width=2), (160, 64)),
    "U-Net, bilinear": (lambda: zoo.UNet(width=2, bilinear=True), (160, 64)),
    "ResNet FCN": (lambda: zoo.ResNetFCN(width=2, blocks=(1, 1, 1, 1)), (160, 64)),
    "LR-ASPP": (lambda: zoo.LRASPP(width=4), (96, 64)),
}


def fields_by_nan(network: nn.Module, height: int, width: int) -> dict[str, list[int]]:
    """For each layer and axis, the most rows or columns of the image that one of its own depends on."""
    found: dict[str, list[int]] = {}
    for axis, count in enumerate((height, width)):
        images = torch.zeros(count, 3, height, width)
        for i in range(count):
            images[i].select(axis + 1, i).fill_(float("nan"))

        def look(name: str, output: object, axis: int = axis) -> None:
            if isinstance(output, Tensor):
                reached = output.isnan().any(dim=1).any(dim=2 - axis)  # images x indices of the axis
                found.setdefault(name, []).append(int(reached.sum(dim=0).max()))

        hooks = [
            module.register_forward_hook(lambda _m, _i, output, name=name: look(name.replace(".", "/"), output))
            for name, module in network.named_modules()
        ]
        with torch.inference_mode():
            network(images)
        for hook in hooks:
            hook.remove()
    return found


@pytest.mark.parametrize("name", NETWORKS)
def test_receptive_fields_are_as_far_as_nan_spread(name: str) -> None:
    make, (height, width) = NETWORKS[name]
    torch.manual_seed(0)
    network = make().eval()
    expected = fields_by_nan(network, height, width)
    wrapped = Logits(network, ModuleOptions("net.py:Net", output_key="out")) if name == "ResNet FCN" else network
    graph, _ = simplify(export_graph(wrapped, fd.OnnxOptions(height, width)))

    found = dependences(graph)

    fields = {str(node.name): found[str(node.outputs[0].name)].receptive_field for node in graph.graph}
    compared = [name for name in fields if len(expected.get(name, ())) == 2]
    assert len(compared) >= 15
    assert {name: fields[name] for name in compared} == {name: tuple(expected[name]) for name in compared}


@pytest.mark.parametrize("geometry", list(fd.Geometry))
def test_what_depends_on_the_image_is_what_integers_say(geometry: fd.Geometry) -> None:
    height, width = 96, 120
    network = random_network(fd.NetworkSpec(fd.Variant.FCN32S, geometry, channel_divisor=32), 0)
    graph, _ = simplify(export_graph(network, fd.OnnxOptions(height, width)))
    rows, columns = (map_regions(size, geometry) for size in (height, width))

    found = dependences(graph)

    for name in rows:
        share = rows[name].live.size * columns[name].live.size / (rows[name].size * columns[name].size)
        assert found[name].live == pytest.approx(share), name
    assert found["conv1_1"].receptive_field == (3, 3)
    assert found["conv1_1"].live == pytest.approx((98 * 122) / (294 * 318))


@pytest.mark.parametrize(
    ("mode", "corners"), [("bilinear", False), ("bilinear", True), ("bicubic", False), ("nearest", None)]
)
@pytest.mark.parametrize("size", [22, 33, 5, 14])
def test_resizing_reads_the_cells_that_pytorch_reads(mode: str, corners: bool | None, size: int) -> None:
    class Resized(nn.Module):
        def forward(self, image: Tensor) -> Tensor:
            return nn.functional.interpolate(image, size=(size, size), mode=mode, align_corners=corners)

    network = nn.Sequential(nn.Conv2d(3, 2, 1), Resized()).eval()
    expected = fields_by_nan(network, 11, 11)["1"]

    graph = export_graph(network, fd.OnnxOptions(11, 11))

    found = dependences(graph)[str(graph.graph.outputs[0].name)].receptive_field
    # A cell of weight 0 turns NaN into NaN in PyTorch; the graph's field leaves it out.
    assert all(f in (e, e - 1) for f, e in zip(found, expected, strict=True))


@pytest.mark.parametrize(("body", "expected"), [
    ("y = Conv<dilations=[3,1]>(x, w)", (7, 3)),
    ("y = GlobalAveragePool(x)", (11, 11)),
    ("g = GlobalAveragePool(x) y = Mul(x, g)", (11, 11)),
    ("y = Slice(x, starts, ends)", (1, 1)),
    ("p = Pad(x, pads) y = Conv(p, w)", (3, 3)),
    ("a = Conv(x, w) b = Slice(x, starts, ends) y = Concat<axis=1>(a, b)", (3, 3)),
])  # fmt: skip
def test_single_operators(body: str, expected: tuple[int, int]) -> None:
    arrays = {
        "w": weights(1, 1, 3, 3), "starts": np.array([0, 0, 2, 2]), "ends": np.array([1, 1, 11, 11]),
        "pads": np.array([0, 0, 2, 2, 0, 0, 2, 2]),
    }  # fmt: skip
    used = {name: array for name, array in arrays.items() if re.search(rf"\b{name}\b", body)}
    model = parsed(body, "float[1,1,11,11] x", "float[1,C,H,W] y", **used)

    assert dependences(model)["y"].receptive_field == expected


def test_constants_beside_a_map_depend_on_nothing() -> None:
    model = parsed("y = Concat<axis=2>(c, x, c)", "float[1,1,4,6] x", "float[1,1,10,6] y", c=weights(1, 1, 3, 6))

    assert dependences(model)["y"] == Dependence((1, 1), 0.4)


def test_what_is_not_followed_is_left_out() -> None:
    model = parsed("r = Reshape(x, s) y = Relu(r)", "float[1,1,4,4] x", "float[1,4,2,2] y", s=np.array([1, 4, 2, 2]))

    assert set(dependences(model)) == {"x"}


def test_pixels_are_followed_to_planes() -> None:
    body = "c = Cast<to=1>(pixels) s = Sub(c, m) t = Transpose<perm=[0,3,1,2]>(s) y = Conv(t, w)"
    model = parsed(body, "uint8[1,9,8,3] pixels", "float[1,1,H,W] y", m=np.zeros(3, np.float32), w=weights(1, 3, 3, 3))

    assert dependences(model)["y"] == Dependence((3, 3), 1.0)
