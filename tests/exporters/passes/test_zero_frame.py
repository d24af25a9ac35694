"""Constants around windows become zero padding: the same sums, in exact arithmetic."""

from dataclasses import replace

import numpy as np
import onnx_ir as ir
import pytest
from onnx_ir.passes.common import RemoveUnusedNodesPass

from exporters.passes.cost import MACHINES
from exporters.passes.edit import RewriteResult
from exporters.passes.fast_convolution import FastConvolution
from exporters.passes.live_window import LiveWindow
from exporters.passes.zero_frame import use_zero_frame
from fcn_deploy import Geometry
from fcn_deploy.choices import Target
from fcn_deploy.graph import infer_shapes
from tests.exporters.passes.graphs import THRIFTY, Trunk, as_double, operators, parsed, run_exactly, weights, worst

FREE_COPIES = replace(MACHINES[Target.CPU], bytes_per_s=float("inf"), transform_bytes_per_s=float("inf"), node_s=0.0)
FRAME = np.array([0.5, -2, 3], np.float32).reshape(1, 3, 1, 1)


def framed(body: str, side: np.ndarray = FRAME, **more: np.ndarray) -> ir.Model:
    """`body` computes x; it is put between two columns and under one row of `side`, and convolved."""
    left, top = (np.broadcast_to(side, (1, 3, *size)).copy() for size in ((7, 2), (1, 12)))
    text = (
        f"{body} wide = Concat<axis = 3>(left, x, left) high = Concat<axis = 2>(top, wide) "
        "y = Conv<pads = [0, 0, 0, 0]>(high, w, b)"
    )
    return parsed(
        text, "float[1, 3, 7, 8] image", "float[1, 4, 6, 10] y",
        left=left, top=top, w=weights(4, 3, 3, 3), b=weights(4, 1)[:, 0], **more,
    )  # fmt: skip


@pytest.mark.parametrize(("body", "expected"), [
    ("x = Sigmoid(image)", ["Sigmoid", "Sub", "Conv"]),
    ("a = Add(image, p) x = Relu(a)", ["Add", "Max", "Conv"]),
])  # fmt: skip
def test_it_is_the_same_convolution(body: str, expected: list[str]) -> None:
    p = np.array([1, -1, 0.25], np.float32).reshape(1, 3, 1, 1)
    plain = as_double(framed(body, p=p))
    fast = plain.clone()
    image = {"image": np.random.default_rng(0).normal(0, 2, (1, 3, 7, 8))}

    assert use_zero_frame(fast, fast.graph[-1])

    RemoveUnusedNodesPass()(fast)
    assert operators(fast) == expected
    assert list(fast.graph[-1].attributes["pads"].as_ints()) == [1, 2, 0, 2]
    assert worst(run_exactly(plain, image), run_exactly(fast, image)) <= 1e-12


def test_values_that_no_longer_are_a_layers_lose_its_name() -> None:
    """`verify --layers` compares the maps that have a layer's name."""
    model = framed("conv9 = Add(image, p) x = Relu(conv9)", p=FRAME)

    assert use_zero_frame(model, model.graph[-1])

    RemoveUnusedNodesPass()(model)
    assert [node.name for node in model.graph] == ["conv9/less_frame", "x/less_frame", "y"]


def test_other_constants_stay() -> None:
    uneven = np.arange(3 * 7 * 2, dtype=np.float32).reshape(1, 3, 7, 2)
    model = framed("x = Sigmoid(image)")
    model.graph.initializers["left"].const_value = ir.tensor(uneven, name="left")

    assert not use_zero_frame(model, model.graph[-1])


@pytest.mark.parametrize("geometry", Geometry)
@pytest.mark.parametrize("batch", [1, 2])
def test_a_whole_trunk_with_live_windows(geometry: Geometry, batch: int) -> None:
    trunk = Trunk(41, 52, geometry=geometry, batch=batch, skip3=(9, 8), skip4=(5, 4)).model()
    plain = as_double(trunk)
    fast = plain.clone()
    LiveWindow(THRIFTY)(fast)
    infer_shapes(fast)
    widened = operators(fast).count("Concat")

    result = FastConvolution(FREE_COPIES)(fast)

    RemoveUnusedNodesPass()(fast)
    assert isinstance(result, RewriteResult)
    assert sum(site.applied for site in result.sites) == 13
    assert operators(fast).count("Concat") < widened
    image = {"image": np.random.default_rng(1).normal(0, 60, (batch, 3, 41, 52))}
    assert worst(run_exactly(plain, image), run_exactly(fast, image)) <= 1e-12
