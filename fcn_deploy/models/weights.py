"""Fill a network with weights, from a checkpoint or at random, and record where they came from."""

import math
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from fcn_deploy.artifact.bundle import check_checkpoint
from fcn_deploy.choices import Geometry, Variant
from fcn_deploy.errors import UsageError
from fcn_deploy.geometry import UPSAMPLINGS
from fcn_deploy.model_info import NetworkSpec, Provenance
from fcn_deploy.models.checkpoints import Checkpoint, check_tensors, read_checkpoint
from fcn_deploy.models.fcn import FCN, empty_network
from fcn_deploy.models.vgg import BLOCKS, narrowed

BIAS_STD = 1.0
UPSAMPLING_NOISE_STD = 0.02
SEEDS = 2**63
FULL_WIDTH = BLOCKS[0][0]
# fcn8s-atonce multiplies the skips by these inside forward (shelhamer, voc-fcn8s-atonce/net.py).
AT_ONCE_SCALES = {"score_pool4.weight": 0.01, "score_pool3.weight": 0.0001}


@dataclass(frozen=True)
class WeightsOptions:
    """Where the weights of a network come from.

    Attributes:
        checkpoint: the file to load, or None for random weights.
        rng_seed: seed for random weights.
        at_once: multiply the skips' weights by the scales of fcn8s-atonce.
    """

    checkpoint: Path | None = None
    rng_seed: int = 0
    at_once: bool = False

    def __post_init__(self) -> None:
        # `check_range` would round the upper bound in its message.
        if not 0 <= self.rng_seed < SEEDS:
            raise UsageError(
                f"seed {self.rng_seed} is not between 0 and {SEEDS - 1}",
                remedy="Pass an --rng-seed within these bounds.",
            )


def rebuild_fcn(spec: NetworkSpec, provenance: Provenance, path: Path | None) -> FCN:
    """Rebuild the FCN an artifact was exported from, with the checkpoint in `path` if there was one.

    Raises:
        CheckpointError: it is another checkpoint.
    """
    options = WeightsOptions(path, provenance.rng_seed or 0, provenance.at_once)
    if path is None:
        return untrained_network(spec, options)[0]
    checkpoint = read_checkpoint(path)
    check_checkpoint(provenance, path, checkpoint.sha256)
    return load_network(spec, checkpoint, options)[0]


def bilinear_kernel(size: int) -> Tensor:
    """Return the size x size float32 bilinear kernel for up-sampling by size/2 (rule of Long et al., surgery.py)."""
    factor = (size + 1) // 2
    centre = factor - 1 if size % 2 else factor - 0.5
    ramp = 1 - (torch.arange(size, dtype=torch.float32) - centre).abs() / factor
    return ramp[:, None] * ramp[None, :]


def random_network(spec: NetworkSpec, rng_seed: int) -> FCN:
    """Return an untrained network in eval mode; equal arguments give bit-identical weights on one PyTorch version."""
    network = empty_network(spec)
    randomise(network, rng_seed)
    return network


@torch.no_grad()
def randomise(network: nn.Module, rng_seed: int) -> None:
    """Fill every convolution of `network` in place with random weights from `rng_seed`."""
    generator = torch.Generator().manual_seed(rng_seed)
    for layer in network.modules():
        if isinstance(layer, nn.ConvTranspose2d):
            _fill_upsampling(layer.weight, generator)
        elif isinstance(layer, nn.Conv2d):
            fan_in = layer.weight[0].numel()
            layer.weight.normal_(0, math.sqrt(2 / fan_in), generator=generator)
            if layer.bias is not None:
                layer.bias.normal_(0, BIAS_STD, generator=generator)


def _fill_upsampling(weight: Tensor, generator: torch.Generator) -> None:
    kernel = bilinear_kernel(weight.shape[-1])
    weight.normal_(0, UPSAMPLING_NOISE_STD / weight.shape[0], generator=generator)
    weight.diagonal().add_(kernel[..., None])


def untrained_network(spec: NetworkSpec, options: WeightsOptions) -> tuple[FCN, Provenance]:
    """Return a network with random weights from `options.rng_seed`."""
    _check_at_once(spec, options, has_checkpoint=False)
    return random_network(spec, options.rng_seed), Provenance(rng_seed=options.rng_seed)


def load_network(spec: NetworkSpec, checkpoint: Checkpoint, options: WeightsOptions) -> tuple[FCN, Provenance]:
    """Return a network with the checkpoint's weights; no tensor of the file is ignored.

    Raises:
        CheckpointError: lists every missing, extra and mis-shaped tensor.
        UsageError: `at_once` for anything but FCN-8s.
    """
    _check_at_once(spec, options, has_checkpoint=True)
    provenance = Provenance(
        checkpoint_sha256=checkpoint.sha256,
        family=checkpoint.family.name,
        at_once=options.at_once,
        dropped=checkpoint.dropped,
    )
    state = dict(checkpoint.state)
    network = empty_network(spec)
    if checkpoint.family.starting_point:
        heads = _missing_heads(network, state)
        source = random_network(spec, options.rng_seed).state_dict()
        state |= {name: source[name] for name in heads}
        provenance = replace(provenance, rng_seed=options.rng_seed, initialised=heads)
    what = f"({checkpoint.family.name} names) does not fit FCN-{spec.variant}, {spec.geometry} geometry, "
    what += f"{spec.num_classes} classes"
    check_tensors(checkpoint.path, network.state_dict(), state, what, _remedy(spec, state))
    if options.at_once:
        state |= {name: state[name] * scale for name, scale in AT_ONCE_SCALES.items()}
    network.load_state_dict(state, assign=True)
    return network.eval(), provenance


def _check_at_once(spec: NetworkSpec, options: WeightsOptions, *, has_checkpoint: bool) -> None:
    if options.at_once and not (has_checkpoint and spec.variant is Variant.FCN8S):
        raise UsageError(
            f"--at-once scales the skips of an fcn8s-atonce checkpoint; this is FCN-{spec.variant}"
            f"{'' if has_checkpoint else ' with random weights'}",
            remedy="Use it with --variant 8s and --checkpoint, or omit it.",
        )


def _missing_heads(network: FCN, state: dict[str, Tensor]) -> tuple[str, ...]:
    return tuple(name for name in network.state_dict() if name.startswith(("score", "upscore")) and name not in state)


def _remedy(spec: NetworkSpec, state: dict[str, Tensor]) -> str:
    likely = [v for v in Variant if all(f"{up.name}.weight" in state for up in UPSAMPLINGS[v])]
    if likely and spec.variant not in likely:
        return f"The file looks like an FCN-{likely[-1]}: pass --variant {likely[-1]}."
    first = state.get("conv1_1.weight")
    if first is not None and first.shape[:1] != (narrowed(FULL_WIDTH, spec.channel_divisor),):
        return f"The file's layers have another width: pass --channel-divisor {FULL_WIDTH // max(first.shape[0], 1)}."
    scores = state.get("score_fr.weight")
    if scores is not None and scores.dim() > 0 and scores.shape[0] != spec.num_classes:
        return f"The file scores {scores.shape[0]} classes: pass --num-classes {scores.shape[0]}."
    if spec.variant is Variant.FCN16S and (spec.geometry is Geometry.FLOOR) == ("score_pool4.bias" in state):
        other = Geometry.CAFFE if spec.geometry is Geometry.FLOOR else Geometry.FLOOR
        return f"Only caffe FCN-16s has score_pool4.bias, which cannot be dropped or invented: pass --geometry {other}."
    return "Nothing was loaded: a missing or invented tensor would change the network."
