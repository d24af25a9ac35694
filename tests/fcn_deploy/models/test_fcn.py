import itertools

import pytest
import torch

import fcn_deploy as fd
from fcn_deploy import Geometry, NetworkSpec, SizeError, UsageError, Variant
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.weights import random_network
from tests import reference
from tests.messages import states

# Every layer as wide as the real one; the sums that rounding depends on are those of 500x500, the maps are smaller.
FULL_WIDTH_IMAGE = (244, 260)
ALL = list(itertools.product(Variant, Geometry))
BUILDERS = {Variant.FCN32S: fd.fcn32s, Variant.FCN16S: fd.fcn16s, Variant.FCN8S: fd.fcn8s}
PARAMETERS = {Variant.FCN32S: 136_152_917, Variant.FCN16S: 134_815_973, Variant.FCN8S: 134_489_759}
HEADS = {
    Variant.FCN32S: {"upscore.weight"},
    Variant.FCN16S: {"upscore2.weight", "score_pool4.weight", "upscore16.weight"},
    Variant.FCN8S: {
        "upscore2.weight", "score_pool4.weight", "score_pool4.bias", "upscore_pool4.weight",
        "score_pool3.weight", "score_pool3.bias", "upscore8.weight",
    },
}  # fmt: skip


@pytest.mark.parametrize(("variant", "geometry"), ALL)
def test_parameter_counts_are_the_published_ones(variant: Variant, geometry: Geometry) -> None:
    with torch.device("meta"):
        network = BUILDERS[variant](geometry=geometry)

    extra = 21 if (variant, geometry) == (Variant.FCN16S, Geometry.CAFFE) else 0
    assert sum(p.numel() for p in network.parameters()) == PARAMETERS[variant] + extra


@pytest.mark.parametrize("variant", Variant)
def test_parameter_names_are_caffes(variant: Variant) -> None:
    with torch.device("meta"):
        names = set(BUILDERS[variant]().state_dict())

    trunk = [f"conv{b}_{i}" for b, n in enumerate((2, 2, 3, 3, 3), 1) for i in range(1, n + 1)]
    layers = [*trunk, "fc6", "fc7", "score_fr"]
    assert names == {f"{layer}.{kind}" for layer in layers for kind in ("weight", "bias")} | HEADS[variant]


@pytest.mark.parametrize(("variant", "geometry"), ALL)
@pytest.mark.parametrize("size", [(205, 171), (133, 90)])
def test_agrees_with_the_independent_implementation_in_float64(
    variant: Variant, geometry: Geometry, size: tuple[int, int]
) -> None:
    network = random_network(NetworkSpec(variant, geometry, channel_divisor=16), rng_seed=1).double()
    image = torch.rand(2, 3, *size, dtype=torch.float64, generator=torch.Generator().manual_seed(0)) * 255 - 120

    with torch.inference_mode():
        actual = network(image).numpy()
        expected = reference.run(network.state_dict(), image, variant, geometry).numpy()

    assert reference.relative_error(expected, actual) < 1e-13


@pytest.mark.full
@pytest.mark.parametrize(("variant", "geometry"), [
    (Variant.FCN32S, Geometry.CAFFE), (Variant.FCN16S, Geometry.FLOOR), (Variant.FCN8S, Geometry.CAFFE),
])  # fmt: skip
def test_full_width_network_agrees_with_the_independent_implementation(variant: Variant, geometry: Geometry) -> None:
    """In float32; the narrow ones agree in float64 for every variant in every geometry."""
    network = random_network(NetworkSpec(variant, geometry), rng_seed=0)
    image = torch.rand(1, 3, *FULL_WIDTH_IMAGE, generator=torch.Generator().manual_seed(0)) * 255 - 120

    with fd_eager(network) as runner:
        actual = runner.run({"image": image.numpy()})["logits"]
    with torch.inference_mode():
        expected = reference.run(network.state_dict(), image, variant, geometry).numpy()

    assert reference.relative_error(expected, actual) < 1e-6


def fd_eager(network: FCN):  # type: ignore[no-untyped-def]
    from fcn_deploy.runtime.eager import EagerRunner

    return EagerRunner(network, (1, 3, *FULL_WIDTH_IMAGE))


@pytest.mark.parametrize(("variant", "geometry"), ALL)
def test_eval_output_is_contiguous_and_deterministic(variant: Variant, geometry: Geometry) -> None:
    network = random_network(NetworkSpec(variant, geometry, num_classes=5, channel_divisor=32), rng_seed=0)
    image = torch.ones(2, 3, 64, 48)

    with torch.inference_mode():
        logits = network(image)

    assert logits.shape == (2, 5, 64, 48)
    assert logits.is_contiguous()
    assert torch.equal(logits, network(image))


def test_training_mode_drops_out() -> None:
    network = random_network(NetworkSpec(Variant.FCN32S, channel_divisor=8), rng_seed=0).train()
    image = torch.ones(1, 3, 64, 64)

    assert not torch.equal(network(image), network(image))


def test_forward_refuses_a_size_that_does_not_fit() -> None:
    network = random_network(NetworkSpec(Variant.FCN16S, channel_divisor=64), rng_seed=0)

    with pytest.raises(SizeError, check=states("width 375 FCN-16s")):
        network(torch.zeros(1, 3, 500, 375))


@pytest.mark.parametrize(("classes", "divisor", "facts"), [
    (0, 1, "0 1 255"),
    (256, 1, "256 1 255"),
    (21, 0, "divisor 0 1"),
])  # fmt: skip
def test_spec_refuses_what_is_out_of_bounds(classes: int, divisor: int, facts: str) -> None:
    with pytest.raises(UsageError, check=states(facts)):
        NetworkSpec(Variant.FCN8S, num_classes=classes, channel_divisor=divisor)


def test_random_weights_are_reproducible_and_leave_no_bias_zero() -> None:
    spec = NetworkSpec(Variant.FCN8S, channel_divisor=16)
    one, same, other = (random_network(spec, seed).state_dict() for seed in (0, 0, 1))

    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not any(torch.equal(one[name], other[name]) for name in one)
    assert all((tensor != 0).all() for tensor in one.values())


def test_random_convolutions_are_he_normal() -> None:
    weight = random_network(NetworkSpec(Variant.FCN32S, channel_divisor=4), 0).state_dict()["conv5_1.weight"]
    fan_in = 128 * 9

    assert weight.mean().item() == pytest.approx(0, abs=3e-4)
    assert weight.std().item() == pytest.approx((2 / fan_in) ** 0.5, rel=0.01)


@pytest.mark.parametrize(("kernel", "row"), [
    (4, [0.25, 0.75, 0.75, 0.25]),
    (3, [0.5, 1.0, 0.5]),
])  # fmt: skip
def test_bilinear_kernel(kernel: int, row: list[float]) -> None:
    from fcn_deploy.models.weights import bilinear_kernel

    expected = torch.tensor(row)[:, None] * torch.tensor(row)[None, :]
    assert torch.equal(bilinear_kernel(kernel), expected)
