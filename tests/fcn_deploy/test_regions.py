from dataclasses import dataclass

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fcn_deploy import Geometry, Variant
from fcn_deploy.geometry import axis_sizes
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.weights import random_network
from fcn_deploy.regions import Region, Sliding, Span, image_region, map_regions

# Live first, live last, rim at the beginning, rim at the end; derived by hand for 500 pixels, floor.
AT_500 = {
    "conv1_1": (698, 98, 599, 0, 0),
    "conv1_2": (698, 97, 600, 1, 1),
    "pool1": (349, 48, 300, 1, 1),
    "pool2": (174, 23, 151, 2, 1),
    "pool3": (87, 10, 77, 3, 2),
    "conv4_3": (87, 7, 80, 6, 5),
    "pool4": (43, 3, 40, 3, 2),
    "conv5_3": (43, 0, 42, 6, 5),
}


def moats(region: Region) -> list[Span]:
    """The constant parts that are not rim, before and behind the live part."""
    before = Span(region.settled.first, region.live.first - 1)
    behind = Span(region.live.last + 1, region.settled.last)
    return [span for span in (before, behind) if span.size > 0]


def test_the_maps_of_500_pixels() -> None:
    found = map_regions(500, Geometry.FLOOR)

    for name, (size, first, last, *rim) in AT_500.items():
        assert found[name] == Region(size, Span(first, last), (rim[0], rim[1])), name
    assert moats(found["pool3"]) == [Span(3, 9), Span(78, 84)]
    assert moats(found["pool4"]) == []


@given(st.integers(1, 700), st.sampled_from(Geometry))
def test_sizes_are_those_of_the_network(image: int, geometry: Geometry) -> None:
    found, sizes = map_regions(image, geometry), axis_sizes(image, Variant.FCN8S, geometry)

    assert found["conv1_2"].size == sizes.conv1
    assert tuple(found[f"pool{n}"].size for n in range(1, 6)) == sizes.pools
    assert found["fc6"].size == sizes.score_fr


@dataclass(frozen=True)
class Cell:
    """One index of a map, pixel by pixel: whether it depends on the image, and whether it knows of a later border."""

    live: bool
    touched: bool


FRAME, BORDER = Cell(live=False, touched=False), Cell(live=False, touched=True)


def slid(cells: list[Cell], motion: Sliding) -> list[Cell]:
    """The output of `motion`, cell by cell: a second implementation without any interval."""
    outside = FRAME if motion.neutral else BORDER
    padded = [outside] * motion.begin + cells + [outside] * motion.end
    made = []
    start = 0
    while start + motion.reach < len(padded) or (motion.ceil and start < motion.begin + len(cells)):
        read = [padded[i] if i < len(padded) else outside for i in range(start, start + motion.reach + 1)]
        read = read[:: motion.dilation]
        made.append(Cell(any(c.live for c in read), any(c.touched for c in read)))
        if start + motion.reach >= len(padded) - 1:
            break
        start += motion.stride
    return made


def region_of(cells: list[Cell]) -> Region:
    live = [i for i, cell in enumerate(cells) if cell.live]
    begin = next((i for i, cell in enumerate(cells) if not cell.touched), len(cells))
    end = next((i for i, cell in enumerate(reversed(cells)) if not cell.touched), len(cells))
    return Region(len(cells), Span(live[0], live[-1]), (begin, end))


CONVOLUTION = st.builds(Sliding, st.integers(1, 5), st.integers(1, 3), st.integers(0, 3), st.integers(0, 3))
POOL = st.builds(
    Sliding, st.integers(2, 3), stride=st.just(2), begin=st.integers(0, 1), ceil=st.booleans(), neutral=st.just(True)
)


@given(st.integers(1, 40), st.integers(0, 120), st.lists(CONVOLUTION | POOL, max_size=6))
def test_intervals_are_what_following_every_index_gives(image: int, padding: int, motions: list[Sliding]) -> None:
    region, cells = image_region(image), [Cell(live=True, touched=False)] * image
    for motion in (Sliding(3, begin=padding, end=padding, neutral=True), *motions):
        if region.size + motion.begin + motion.end <= motion.reach:
            return
        region, cells = motion.region(region), slid(cells, motion)
        assert region.size == len(cells)
        if all(cell.touched for cell in cells) or not any(cell.live for cell in cells):
            return
        assert region == region_of(cells)


@given(CONVOLUTION, st.integers(-5, 30), st.integers(0, 20))
def test_what_is_read_is_enough(motion: Sliding, first: int, more: int) -> None:
    outputs = Span(first, first + more)

    assert motion.computed_from(motion.read_by(outputs)) == outputs


def maps(network: torch.nn.Module, image: torch.Tensor) -> dict[str, torch.Tensor]:
    """Every map of the trunk before its activation."""
    found: dict[str, torch.Tensor] = {}
    hooks = [
        layer.register_forward_hook(lambda _, __, made, name=name: found.__setitem__(name, made))
        for name, layer in network.named_children()
        if name.startswith(("conv", "pool", "fc6"))
    ]
    with torch.inference_mode():
        network(image)
    for hook in hooks:
        hook.remove()
    return found


@pytest.mark.parametrize("geometry", Geometry)
@pytest.mark.parametrize(("height", "width"), [(64, 45), (77, 100), (130, 33)])
def test_the_truth_of_a_real_network(geometry: Geometry, height: int, width: int) -> None:
    """In float64: every pixel that any of several images changes is live; where nothing is rim, all is one value."""
    spec = NetworkSpec(Variant.FCN32S, geometry, num_classes=3, channel_divisor=16)
    network = random_network(spec, 0).double()
    zero = maps(network, torch.zeros(1, 3, height, width, dtype=torch.float64))
    changed = {name: torch.zeros(made.shape[-2:], dtype=torch.bool) for name, made in zero.items()}
    for seed in range(4):
        noise = 100 * torch.randn(1, 3, height, width, dtype=torch.float64, generator=torch.manual_seed(seed))
        for name, made in maps(network, noise).items():
            changed[name] |= ((made - zero[name]).abs() > 1e-9).any(dim=1)[0]

    rows, columns = map_regions(height, geometry), map_regions(width, geometry)
    for name, made in zero.items():
        live = torch.zeros_like(changed[name])
        r, c = rows[name], columns[name]
        live[r.live.first : r.live.last + 1, c.live.first : c.live.last + 1] = True
        assert not (changed[name] & ~live).any(), f"{name}: a constant pixel changed"
        assert changed[name].any(dim=1).equal(live.any(dim=1)), f"{name}: a live row never changed"
        assert changed[name].any(dim=0).equal(live.any(dim=0)), f"{name}: a live column never changed"
        settled = made[0, :, r.settled.first : r.settled.last + 1, c.settled.first : c.settled.last + 1]
        if settled.numel():
            assert (settled - settled[:, :1, :1]).abs().max() < 1e-12, f"{name}: the moat is not one constant"
            outer = made[0, :, r.settled.first - 1, c.settled.first] - settled[:, 0, 0]
            assert r.rim[0] == 0 or outer.abs().max() > 1e-9, f"{name}: the rim is as the moat is"
