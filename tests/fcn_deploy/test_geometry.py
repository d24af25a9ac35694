import itertools
from fractions import Fraction

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from fcn_deploy import Geometry, SizeError, Variant
from fcn_deploy.geometry import (
    FINAL_CROPS,
    UPSAMPLINGS,
    axis_fits,
    axis_sizes,
    check_fits,
    nearest_fitting,
    output_shift,
    pooled,
)
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.vgg import BLOCKS
from tests.messages import missing

ALL = list(itertools.product(Variant, Geometry))

# conv1, pool1 ... pool5, score_fr for a 500x500 image.
MAPS_AT_500 = {
    Geometry.FLOOR: (698, 349, 174, 87, 43, 21, 15),
    Geometry.CAFFE: (698, 349, 175, 88, 44, 22, 16),
}
FULL_AT_500 = {Geometry.FLOOR: (512, 528, 536), Geometry.CAFFE: (544, 560, 568)}
CROPS = {Geometry.FLOOR: (6, 27, 31), Geometry.CAFFE: (19, 27, 31)}
SMALLEST = {Geometry.FLOOR: 26, Geometry.CAFFE: 1}


@pytest.mark.parametrize("geometry", Geometry)
def test_maps_at_500_are_the_published_ones(geometry: Geometry) -> None:
    sizes = axis_sizes(500, Variant.FCN8S, geometry)

    assert (sizes.conv1, *sizes.pools, sizes.score_fr) == MAPS_AT_500[geometry]
    assert sizes.pool("pool3") == MAPS_AT_500[geometry][3]


@pytest.mark.parametrize("geometry", Geometry)
def test_full_maps_and_crops_at_500_are_the_published_ones(geometry: Geometry) -> None:
    assert tuple(axis_sizes(500, v, geometry).full for v in Variant) == FULL_AT_500[geometry]
    assert tuple(FINAL_CROPS[geometry][v] for v in Variant) == CROPS[geometry]


def test_crops_follow_from_the_coordinate_rules() -> None:
    """Conv and pool: i_out = (i_in + pad - (k-1)/2) / s; deconv: i_out = s * i_in + (k-1)/2."""
    scale, offset = Fraction(1), Fraction(100 - 1)  # conv1_1: pad 100, kernel 3
    pools = {}
    for block in range(1, 6):
        scale, offset = scale / 2, (offset - Fraction(1, 2)) / 2
        pools[f"pool{block}"] = scale, offset
    offset -= 3  # fc6: kernel 7, no padding

    for variant in Variant:
        at = scale, offset
        for up in UPSAMPLINGS[variant]:
            at = at[0] * up.stride, at[1] * up.stride + Fraction(up.kernel - 1, 2)
            if up.skip:
                assert pools[up.skip][0] == at[0]
                assert pools[up.skip][1] - at[1] == up.skip_crop
        assert at == (Fraction(1), Fraction(FINAL_CROPS[Geometry.CAFFE][variant]))
        assert output_shift(variant, Geometry.FLOOR) == at[1] - FINAL_CROPS[Geometry.FLOOR][variant]


def test_only_floor_32s_is_shifted() -> None:
    shifts = {(v, g): output_shift(v, g) for v, g in ALL}

    assert shifts.pop((Variant.FCN32S, Geometry.FLOOR)) == 13
    assert set(shifts.values()) == {0}


@pytest.mark.parametrize(("variant", "geometry"), ALL)
def test_smallest_side(variant: Variant, geometry: Geometry) -> None:
    smallest = SMALLEST[geometry]

    assert axis_fits(smallest, variant, geometry)
    assert not any(axis_fits(n, variant, geometry) for n in range(-3, smallest))


def test_floor_16s_fails_exactly_where_the_remainder_is_22_to_25() -> None:
    failing = [n for n in range(26, 2000) if not axis_fits(n, Variant.FCN16S, Geometry.FLOOR)]

    assert failing == [n for n in range(26, 2000) if n % 32 in (22, 23, 24, 25)]


@pytest.mark.parametrize(("variant", "geometry"), [c for c in ALL if c != (Variant.FCN16S, Geometry.FLOOR)])
def test_every_other_network_fits_every_size(variant: Variant, geometry: Geometry) -> None:
    assert all(axis_fits(n, variant, geometry) for n in range(SMALLEST[geometry], 2000))


@pytest.mark.parametrize(("variant", "geometry"), ALL)
def test_arithmetic_agrees_with_the_real_network_for_64_sizes(variant: Variant, geometry: Geometry) -> None:
    with torch.device("meta"):
        network = FCN(NetworkSpec(variant, geometry, channel_divisor=64)).eval()
    seen: dict[str, tuple[int, ...]] = {}
    for name, layer in network.named_modules():
        layer.register_forward_hook(lambda _m, _i, out, name=name: seen.__setitem__(name, tuple(out.shape[2:])))

    for height, width in zip(range(470, 534), range(533, 469, -1), strict=True):
        image = torch.empty(1, 3, height, width, device="meta")
        if not (axis_fits(height, variant, geometry) and axis_fits(width, variant, geometry)):
            with pytest.raises(SizeError):
                network(image)
            continue
        assert network(image).shape == (1, 21, height, width)
        rows, columns = axis_sizes(height, variant, geometry), axis_sizes(width, variant, geometry)
        assert seen["conv1_1"] == (rows.conv1, columns.conv1)
        for block in range(1, 6):
            assert seen[f"pool{block}"] == (rows.pool(f"pool{block}"), columns.pool(f"pool{block}"))
        assert seen["score_fr"] == (rows.score_fr, columns.score_fr)
        for up, high, wide in zip(UPSAMPLINGS[variant], rows.upsampled, columns.upsampled, strict=True):
            assert seen[up.name] == (high, wide)


@given(st.integers(0, 10**6))
def test_pooling_floor_and_caffe_differ_by_the_odd_row(size: int) -> None:
    assert pooled(size, Geometry.CAFFE) - pooled(size, Geometry.FLOOR) == size % 2


@given(st.integers(-5, 3000), st.sampled_from(Variant), st.sampled_from(Geometry))
def test_nearest_fitting_sizes_fit_and_nothing_nearer_does(size: int, variant: Variant, geometry: Geometry) -> None:
    near = nearest_fitting(size, variant, geometry)

    assert all(axis_fits(n, variant, geometry) for n in near)
    low, high = near[0] if len(near) == 2 else size, near[-1]
    assert low <= size < high
    assert not any(axis_fits(n, variant, geometry) for n in range(low + 1, high) if n != size)


@pytest.mark.parametrize("axis", ["height", "width"])
def test_misfit_names_the_axis_the_loss_and_both_ways_out(axis: str) -> None:
    size = (375, 500) if axis == "height" else (500, 375)

    with pytest.raises(SizeError) as caught:
        check_fits(*size, Variant.FCN16S, Geometry.FLOOR)

    assert missing(f"{axis} 375 FCN-16s floor 400 27 373", caught.value.problem) == []
    assert missing(f"{axis} 373 378 --size --geometry caffe", caught.value.remedy) == []
    assert caught.value.exit_code == 2


def test_too_small_names_the_minimum() -> None:
    with pytest.raises(SizeError) as caught:
        check_fits(25, 500, Variant.FCN32S, Geometry.FLOOR)

    assert missing("fc6 7 pool5 6", caught.value.problem) == []
    assert missing("height 26 --size --geometry caffe 25", caught.value.remedy) == []


def probe_network(variant: Variant, geometry: Geometry) -> FCN:
    """Every 3x3 and fc6 a centre tap, every deconvolution bilinear: what comes out says where it came from."""
    network = FCN(NetworkSpec(variant, geometry, num_classes=4, channel_divisor=16)).double().eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.zero_()
        for name, layer in network.named_modules():
            if isinstance(layer, nn.ConvTranspose2d):
                stride = layer.stride[0]
                ramp = 1 - (torch.arange(2 * stride).double() - (stride - 0.5)).abs() / stride
                for k in range(4):
                    layer.weight[k, k] = ramp[:, None] * ramp[None, :]
            elif isinstance(layer, nn.Conv2d):
                centre = layer.kernel_size[0] // 2
                # With skips, each of the two or three summed paths carries its share.
                share = 1 if not name.startswith("score") else Fraction(1, len(UPSAMPLINGS[variant]))
                for k in range(min(4, layer.in_channels)):
                    layer.weight[k, k, centre, centre] = float(share)
    network.conv1_1 = nn.Conv2d(4, BLOCKS[0][0] // 16, 3, padding=100).double()
    with torch.no_grad():
        network.conv1_1.weight.zero_()
        network.conv1_1.bias.zero_()  # type: ignore[union-attr]
        for k in range(4):
            network.conv1_1.weight[k, k, 1, 1] = 1
    return network


@pytest.mark.parametrize(("variant", "geometry"), ALL)
@pytest.mark.parametrize("size", [500, 403])
def test_alignment_probe_through_real_operators(variant: Variant, geometry: Geometry, size: int) -> None:
    """Channels C+x, C-x, C+y, C-y: half their differences are source coordinates, in spite of max pooling."""
    x = torch.arange(size).double().expand(size, size)
    image = torch.stack([1000 + x, 1000 - x, 1000 + x.T, 1000 - x.T])[None]

    with torch.inference_mode():
        out = probe_network(variant, geometry)(image)[0]

    inner = slice(120, size - 130)
    columns, rows = (out[0] - out[1])[inner, inner] / 2, (out[2] - out[3])[inner, inner] / 2
    expected = x[inner, inner] - output_shift(variant, geometry)
    torch.testing.assert_close(columns, expected, atol=1e-9, rtol=0)
    torch.testing.assert_close(rows, x.T[inner, inner] - output_shift(variant, geometry), atol=1e-9, rtol=0)
