"""Trains the sample checkpoint: a narrow FCN-8s that tells six shapes apart, so that accuracy can be measured and seen.

Run as `python -m benchmarks.train_sample OUTPUT.safetensors [STEPS]`; about 20 minutes on two cores. Seeded: one
PyTorch version on one kind of processor gives the same weights. They are stored in float16.
"""

import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, IterableDataset

from benchmarks.scenes import CLASSES, SIDE, Split, scene
from fcn_deploy.geometry import Geometry, Variant
from fcn_deploy.images import preprocess
from fcn_deploy.model_info import NetworkSpec
from fcn_deploy.models.fcn import FCN
from fcn_deploy.models.init import random_network

SPEC = NetworkSpec(Variant.FCN8S, Geometry.CAFFE, len(CLASSES), channel_divisor=8)
# Input values have a standard deviation of about 64; He's rule expects 1.
_INPUT_STD = 64


@dataclass(frozen=True)
class Training:
    """How the sample is trained.

    Attributes:
        steps: of the optimiser.
        batch: scenes a step.
        learning_rate: at its highest, after the first twentieth of the steps; it falls like a cosine.
        clip: largest norm of a step's gradients.
    """

    steps: int = 4000
    batch: int = 8
    learning_rate: float = 1e-3
    clip: float = 1.0


class _Scenes(IterableDataset[tuple[Tensor, Tensor]]):
    """Training scenes one after the other, dealt to the loader's workers in turn."""

    def __init__(self, count: int) -> None:
        self.count = count

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for seed in range(self.count):
            made = scene(Split.TRAINING, seed, SIDE, SIDE)
            yield torch.from_numpy(preprocess(made.pixels[None])[0]), torch.from_numpy(made.labels.astype(np.int64))


def train(options: Training) -> FCN:
    """A trained network in eval mode; its loss goes to stdout every hundred steps."""
    network = random_network(SPEC, 0).train()
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    _soften(network)
    optimiser = torch.optim.Adam(network.parameters(), lr=options.learning_rate)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, options.learning_rate, total_steps=options.steps, pct_start=0.05, cycle_momentum=False
    )
    loader = DataLoader(_Scenes(options.steps * options.batch), options.batch, num_workers=1)
    for step, (images, labels) in enumerate(loader):
        with torch.autocast("cpu", torch.bfloat16):
            logits = network(images.contiguous(memory_format=torch.channels_last))
        loss = nn.functional.cross_entropy(logits.float(), labels)
        optimiser.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), options.clip)
        optimiser.step()
        schedule.step()
        if step % 100 == 0 or step == options.steps - 1:
            sys.stdout.write(f"step {step}: loss {loss.item():.3f}\n")
            sys.stdout.flush()
    return network.eval()


@torch.no_grad()
def _soften(network: FCN) -> None:
    """Weights to start from: small biases, a first layer for values of 0 to 255, scores of zero."""
    for name, parameter in network.named_parameters():
        if name.endswith(".bias"):
            parameter.mul_(0.01)
        elif name == "conv1_1.weight":
            parameter.div_(_INPUT_STD)
        elif name.startswith("score"):
            parameter.zero_()


def save(network: FCN, path: Path) -> None:
    """Write the weights as float16, with the classes' names beside them."""
    state = {name: tensor.half().contiguous() for name, tensor in network.state_dict().items()}
    save_file(state, path, metadata={"class_names": " ".join(CLASSES)})


if __name__ == "__main__":
    save(train(Training(int(sys.argv[2])) if len(sys.argv) > 2 else Training()), Path(sys.argv[1]))
