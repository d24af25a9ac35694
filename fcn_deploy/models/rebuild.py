"""Rebuild the network that an artifact was exported from, as the reference that it is compared with."""

from dataclasses import dataclass

from torch import nn

from fcn_deploy.artifact.bundle import RebuildOptions, check_checkpoint, check_rebuild
from fcn_deploy.errors import ModuleError
from fcn_deploy.model_info import ModelInfo, ModuleSpec, NetworkSpec, Provenance
from fcn_deploy.models.logits import adapted
from fcn_deploy.models.modules import ModuleOptions, check_expected, file_of, load_checkpoint, load_source, state_sha256
from fcn_deploy.models.weights import rebuild_fcn
from fcn_deploy.storage import file_sha256


@dataclass(frozen=True)
class Rebuilt:
    """A rebuilt network."""

    network: nn.Module  # in eval mode: N x 3 x H x W images to N x K x H x W logits
    remark: str = ""  # how it differs from what was exported; empty if it does not


def rebuild(info: ModelInfo, options: RebuildOptions) -> Rebuilt:
    """Rebuild the network an artifact was exported from.

    Raises:
        CheckpointError: the artifact came from a checkpoint and none, or another one, is given.
        ModuleError: it came from the user's own code and none, or other code, is given.
        UsageError: it came from random weights and a checkpoint is given, or from an FCN and a module is given.
    """
    check_rebuild(info, options)
    if isinstance(info.network, NetworkSpec):
        return Rebuilt(rebuild_fcn(info.network, info.provenance, options.checkpoint))
    if options.module is None:
        raise ValueError("checked before: a source is never taken from an artifact")
    return rebuild_module(info.network, info.provenance, options.module, options)


def check_source(spec: ModuleSpec, options: RebuildOptions) -> None:
    """Check, without running its code, that a file is the one an artifact was exported from; ModuleError if not."""
    chosen = ModuleOptions(options.module) if options.module is not None else None
    if chosen is not None and chosen.is_file:
        sha256 = file_sha256(file_of(chosen, 0))
        check_expected(chosen, None if options.module_changed else sha256, spec)


def rebuild_module(spec: ModuleSpec, provenance: Provenance, source: str, given: RebuildOptions) -> Rebuilt:
    """Rebuild the network that an artifact was exported from; a remark says if its file has changed.

    Raises:
        ModuleError: the source is another one without `module_changed`, or its weights are not those of the artifact.
        CheckpointError: the checkpoint is another one, or not of this network.
    """
    options = ModuleOptions(source, spec.arguments, spec.output_key, spec.upsample, spec.align_corners)
    seed = provenance.rng_seed or 0
    found = load_source(options, seed, spec, may_differ=given.module_changed)
    network = found.build(seed)
    if given.checkpoint is not None:
        check_checkpoint(provenance, given.checkpoint, file_sha256(given.checkpoint))
        load_checkpoint(network, given.checkpoint)
    if state_sha256(network) != provenance.weights_sha256:
        raise ModuleError(
            f"the weights of {source} are not those that were exported (SHA-256 {provenance.weights_sha256})",
            remedy="Export it again, with a checkpoint, and with all tensors as parameters or buffers.",
        )
    is_other = found.sha256 != spec.sha256
    remark = f"{options.place} has changed since the export: SHA-256 {found.sha256}" if is_other else ""
    return Rebuilt(adapted(network, options), remark)
