"""Networks of the user's own code as networks of this toolkit: their output is N x K x H x W logits.

What cannot be made that is refused.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from fcn_deploy.choices import UpsampleMode
from fcn_deploy.errors import ModuleError, UsageError
from fcn_deploy.model_info import MAX_CLASSES, ModuleSpec, Provenance
from fcn_deploy.models.checkpoints import check_class_names
from fcn_deploy.models.modules import ModuleOptions, ModuleSource, Shape, load_source, users_code, weighted
from fcn_deploy.models.weights import WeightsOptions

_DEFAULT_KEY = "out"
_WRAP_IT = "Name a function that wraps it in a module which returns its logits (docs/networks.md)."


class Logits(nn.Module):
    """Makes a network's output N x K x H x W logits: takes them out of a dictionary, and up-samples them."""

    def __init__(self, network: nn.Module, options: ModuleOptions) -> None:
        super().__init__()
        self.wrapped = network
        self._key, self._upsample, self._align_corners = options.output_key, options.upsample, options.align_corners

    def forward(self, image: Tensor) -> Tensor:
        """Return the logits of a batch of images."""
        found = self.wrapped(image)
        logits: Tensor = found if self._key is None else found[self._key]
        if self._upsample is UpsampleMode.NONE:
            return logits
        corners = self._align_corners if self._upsample is UpsampleMode.BILINEAR else None
        return functional.interpolate(logits, size=image.shape[-2:], mode=self._upsample, align_corners=corners)


def adapted(network: nn.Module, options: ModuleOptions) -> nn.Module:
    """Return a network that gives logits of the image's size: itself, or a `Logits` around it."""
    plain = options.output_key is None and options.upsample is UpsampleMode.NONE
    return network if plain else Logits(network, options).eval()


def load_module(
    options: ModuleOptions, weights: WeightsOptions, shape: Shape, bounds: tuple[float, float]
) -> tuple[nn.Module, ModuleSpec, Provenance, tuple[str, ...]]:
    """Import and build a network, load its weights, and run it.

    Args:
        options: the network.
        weights: its checkpoint; without one, random weights or those that the source brings along.
        shape: N x 3 x H x W of its input.
        bounds: the smallest and the largest value of its input.

    Returns:
        The network, which maps images to logits of their size; its facts; the origin of its weights; the names of its
        classes, where the checkpoint has them.

    Raises:
        ModuleError: it cannot be imported, built or run, or its output is not N x K x H x W of float32.
        CheckpointError: the checkpoint is unreadable, unsafe, or not of this network.
    """
    if weights.at_once:
        raise UsageError("--at-once is for checkpoints of FCN-8s", remedy="Omit it.")
    source = load_source(options, weights.rng_seed)
    network, provenance, names = weighted(source, weights)
    network, spec = as_logits(network, source, shape, bounds)
    if weights.checkpoint is not None:
        check_class_names(weights.checkpoint, names, spec.num_classes)
    return network, spec, provenance, names


def as_logits(
    network: nn.Module, source: ModuleSource, shape: Shape, bounds: tuple[float, float]
) -> tuple[nn.Module, ModuleSpec]:
    """Run a network twice, and return it so that its output is N x K x H x W logits, with its facts.

    Raises:
        ModuleError: it raises, its two runs differ, or its output cannot be made logits of the image's size.
    """
    options, (low, high) = source.options, bounds
    image = low + (high - low) * torch.rand(shape, generator=torch.Generator().manual_seed(0))
    outputs = []
    for run in range(2):
        with torch.inference_mode(), users_code(options, "run", run):
            outputs.append(network(image.clone()))
    options = replace(options, output_key=_key_of(outputs[0], options))
    logits, again = (out[options.output_key] if options.output_key is not None else out for out in outputs)
    _check_logits(logits, options, shape)
    if not torch.equal(logits, again):
        difference = float((logits - again).abs().max())
        raise ModuleError(
            f"two runs of {options.source} on one image differ by {difference:.2g}: something in it is random in eval "
            "mode, such as dropout with training=True, or keeps a state",
            remedy="Make it depend on self.training.",
        )
    _check_size(logits, options, shape)
    facts = options.recorded, source.sha256, logits.shape[1], options.arguments, options.output_key
    return adapted(network, options), ModuleSpec(*facts, options.upsample, options.align_corners)


def _key_of(output: Any, options: ModuleOptions) -> str | None:
    """Return the key of the logits in a dictionary of outputs; None for a tensor."""
    if not isinstance(output, Mapping):
        if options.output_key is not None:
            raise ModuleError(
                f"{options.source} returns a {type(output).__name__}, which has no key {options.output_key!r}",
                remedy="Omit --output-key.",
            )
        if isinstance(output, Tensor):
            return None
        raise ModuleError(
            f"{options.source} returns a {type(output).__name__}, neither a tensor nor a dictionary of tensors",
            remedy=_WRAP_IT,
        )
    key = options.output_key if options.output_key is not None else _DEFAULT_KEY
    if not isinstance(output.get(key), Tensor):
        named = ", ".join(f"{name} {_sizes(value)}" for name, value in output.items() if isinstance(value, Tensor))
        raise ModuleError(
            f"{options.source} returns a dictionary without a tensor called {key}; it has {named or 'no tensors'}",
            remedy="Pass the key of the logits with --output-key.",
        )
    return key


def _check_logits(logits: Tensor, options: ModuleOptions, shape: Shape) -> None:
    fits = logits.dim() == len(shape) and logits.shape[0] == shape[0] and 1 <= logits.shape[1] <= MAX_CLASSES
    if not fits or logits.dtype is not torch.float32:
        raise ModuleError(
            f"{options.source} returns {str(logits.dtype).removeprefix('torch.')} {_sizes(logits)}; logits are float32 "
            f"{shape[0]} x K x H x W, with K from 1 to {MAX_CLASSES}",
            remedy=_WRAP_IT,
        )
    if not bool(torch.isfinite(logits).all()):
        raise ModuleError(
            f"the logits of {options.source} have NaN or infinities", remedy="Check its weights and its operations."
        )


def _check_size(logits: Tensor, options: ModuleOptions, shape: Shape) -> None:
    """Check that the logits have the image's size, or can be brought to it by the chosen up-sampling."""
    sizes, wanted = tuple(logits.shape[2:]), shape[2:]
    described = f"the logits of {options.source} are {_sizes(logits)} for images of {wanted[0]} x {wanted[1]}"
    if sizes == wanted:
        if options.upsample is not UpsampleMode.NONE:
            raise UsageError(f"{described}, which need no up-sampling", remedy="Omit --upsample.")
    elif any(size < 1 or whole % size for size, whole in zip(sizes, wanted, strict=True)):
        raise ModuleError(
            f"{described}, neither as large nor smaller by a whole factor",
            remedy="Pass another --size, or resize them in the network.",
        )
    elif options.upsample is UpsampleMode.NONE:
        raise ModuleError(
            f"{described}, smaller by {wanted[0] // sizes[0]} and {wanted[1] // sizes[1]}",
            remedy="Pass --upsample bilinear, or nearest, as the network is used where it was trained.",
        )


def _sizes(tensor: Tensor) -> str:
    return " x ".join(str(size) for size in tensor.shape) or "a number"
