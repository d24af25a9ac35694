"""Verify an artifact: rebuild the network it was exported from, run both on difficult inputs, and compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from fcn_deploy.artifact import Artifact, is_engine, open_artifact
from fcn_deploy.artifact.bundle import RebuildOptions
from fcn_deploy.artifact.engine import Engine
from fcn_deploy.choices import Head, ImageInput, Provider
from fcn_deploy.errors import OutputError, UsageError, check_range
from fcn_deploy.images import FloatArray
from fcn_deploy.model_info import ModelInfo, ModuleSpec
from fcn_deploy.models.rebuild import rebuild
from fcn_deploy.parity.bisect import LayerReport, compare_layers
from fcn_deploy.parity.compare import LabelComparison, compare_outputs
from fcn_deploy.parity.inputs import FLAT_INPUTS, ParityInput, Shape, parity_inputs, photo_inputs
from fcn_deploy.parity.report import ExactErrors, ParityReport
from fcn_deploy.parity.tolerance import tier_of
from fcn_deploy.progress import OnStep, quietly
from fcn_deploy.runtime.base import Runner
from fcn_deploy.runtime.eager import EagerRunner
from fcn_deploy.runtime.open import check_engine, check_provider, runner_for
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.storage import staged_file

Outputs = dict[str, npt.NDArray[Any]]

WORST_INPUT_FILE = "worst-input.npy"
# Inputs and the outputs of both runtimes are held until they are compared: 45 MB per sample at full size.
MAX_SAMPLES = 64
# Of float32, relative: 2^-23.
_ROUNDING = float(np.finfo(np.float32).eps)


def run_all(runner: Runner, inputs: Sequence[ParityInput], on_step: OnStep) -> list[Outputs]:
    """Open `runner`, run it on every input and close it, so that two runtimes never hold memory at once."""
    outputs = []
    with on_step(f"run {runner.name} on {_names(inputs)}", len(inputs)) as advance, runner:
        for given in inputs:
            spec = runner.inputs[0]
            outputs.append(runner.run({spec.name: given.feed(spec)}))
            advance()
    return outputs


def compare_all(
    info: ModelInfo, inputs: Sequence[ParityInput], references: Sequence[Outputs], candidates: Sequence[Outputs]
) -> tuple[LabelComparison, ...]:
    """Compare the outputs of two runners, input by input; raises ParityError if their names or shapes differ."""
    triples = zip(inputs, references, candidates, strict=True)
    return tuple(compare_outputs(given.name, expected, actual, info.boundary) for given, expected, actual in triples)


def _names(inputs: Sequence[ParityInput]) -> str:
    few = len(inputs) <= 2
    return " and ".join(given.name for given in inputs) if few else f"{len(inputs)} inputs"


@dataclass(frozen=True)
class VerifyOptions:
    """Options of a verification.

    Attributes:
        checkpoint: the checkpoint the artifact was exported from; required if there was one.
        images: photos, or inputs saved earlier as .npy; empty means the photos the artifact was calibrated on,
            or else the bundled photo.
        samples: number of noise inputs.
        provider: where ONNX Runtime runs the artifact.
        exact: also measure PyTorch and the artifact against the network in float64 (minutes and gigabytes at full
            size).
        layers: also compare every layer with PyTorch's on the worst input, to find the first wrong one.
        save_worst: where to save the worst input; None saves it beside the model, and only when the check fails.
        use_cache: open a large model from its prepared session on a CPU, which the first run on a machine writes.
        module: the user's own network that it was exported from, whose code is run; required if there was one.
        module_changed: accept that the module's file has changed since; the result says so.
    """

    checkpoint: Path | None = None
    images: tuple[Path, ...] = ()
    samples: int = 1
    provider: Provider = Provider.CPU
    exact: bool = False
    layers: bool = False
    save_worst: Path | None = None
    use_cache: bool = True
    module: str | None = None
    module_changed: bool = False

    def __post_init__(self) -> None:
        check_range("number of noise samples", self.samples, 1, MAX_SAMPLES, option="--samples")
        if self.save_worst is not None and self.save_worst.suffix != ".npy":
            raise UsageError(
                f"{self.save_worst} does not end in .npy, so --image cannot replay it", remedy="Name it *.npy."
            )

    @property
    def rebuild_options(self) -> RebuildOptions:
        """What the network is rebuilt from."""
        return RebuildOptions(self.checkpoint, self.module, self.module_changed)


@dataclass(frozen=True)
class Verification:
    """The outcome of a verification.

    Attributes:
        info: the model's facts.
        parity: the comparison.
        worst_input: where the worst input was saved; None when it was not.
        placement: number of nodes per execution provider, as reported by ONNX Runtime's session.
        layers: every layer on the worst input; None unless requested.
    """

    info: ModelInfo
    parity: ParityReport
    worst_input: Path | None
    placement: Mapping[str, int]
    layers: LayerReport | None = None

    def require(self) -> None:
        """Raise unless the check passed.

        Raises:
            ParityError: the check failed; names the worst input, broken bounds, and the first wrong layer if known.
        """
        self.parity.require(self.layers.verdict if self.layers is not None else "")

    def to_dict(self) -> dict[str, Any]:
        """Return every figure, for JSON."""
        saved = str(self.worst_input) if self.worst_input else None
        facts = {"model": self.info.to_metadata(), "placement": dict(self.placement)}
        layers = self.layers.to_dict() if self.layers is not None else None
        return {**facts, "parity": self.parity.to_dict(), "layers": layers, "worst_input_file": saved}


def verify(path: Path, options: VerifyOptions | None = None, on_step: OnStep = quietly) -> Verification:
    """Compare a bundle, an ONNX file or a TensorRT engine of this toolkit with the network it was exported from.

    A check that fails is returned, not raised: see `Verification.parity`.

    Raises:
        BundleError: the artifact is missing, damaged, or differs from its manifest.
        CheckpointError: the checkpoint is missing where it is needed, or the artifact was exported from another one.
        ProviderError: the requested provider would not run.
    """
    options = options or VerifyOptions()
    if options.layers and is_engine(path):
        raise UsageError(f"{path} is an engine, whose layers are fused", remedy="Omit --layers.")
    check_provider(path, options.provider)
    with on_step(f"check {path}"):
        artifact = open_artifact(path)
        info, shape = artifact.info, artifact.input_shape
    if isinstance(artifact, Engine):
        check_engine(artifact)
    if options.exact and info.head is Head.LABELS:
        raise UsageError("the model outputs labels, and --exact compares logits", remedy="Omit --exact.")
    photos = photo_inputs(options.images or artifact.photos, shape, info.preprocessing)
    inputs = parity_inputs(info, shape, photos, noise=options.samples, hard=True)
    reference_name, references, exact = _reference_outputs(info, options, inputs, shape, on_step)
    candidate = runner_for(artifact, options.provider, use_cache=options.use_cache)
    outputs = run_all(candidate, inputs, on_step)
    with on_step("compare"):
        comparisons = compare_all(info, inputs, references, outputs)
        distances = _distances(info, inputs, references, outputs, exact)
    parity = ParityReport(reference_name, candidate.name, tier_of(info), comparisons, distances)
    parity = replace(parity, undecided=_undecided(info, options, parity, inputs, on_step))
    placement = {name: len(nodes) for name, nodes in candidate.placement.items()}
    worst = inputs[comparisons.index(parity.worst)]
    layers = None
    if options.layers:
        network, how = rebuild(info, options.rebuild_options).network, OrtOptions(options.provider)
        layers = compare_layers(
            artifact.model_path, network, worst, parity.tier.max_error, options=how, on_step=on_step
        )
    saved = _save_worst(artifact, options, worst, passed=parity.passed)
    return Verification(info, parity, saved, placement, layers)


def _reference_outputs(
    info: ModelInfo, options: VerifyOptions, inputs: Sequence[ParityInput], shape: Shape, on_step: OnStep
) -> tuple[str, list[Outputs], list[Outputs]]:
    """Return the network's name and its outputs in float32 and, if requested, float64; then free its memory."""
    with on_step(f"rebuild {info.network}, {info.provenance}"):
        found = rebuild(info, options.rebuild_options)
    network = found.network
    runner = EagerRunner(network, shape, found.remark)
    references = run_all(runner, inputs, on_step)
    exact: list[Outputs] = []
    if options.exact:
        exact = run_all(EagerRunner(network.double(), shape), inputs, on_step)
    return runner.name, references, exact


def _undecided(
    info: ModelInfo, options: VerifyOptions, parity: ParityReport, inputs: Sequence[ParityInput], on_step: OnStep
) -> tuple[str, ...]:
    """Return the flat inputs that fail, and by which nothing can be judged.

    Networks that normalise every image divide flat ones by their own rounding errors: in float64, an image that differs
    by no more than float32's rounding then has logits that differ by more than the bound.
    """
    bound = parity.tier.max_error
    failing = {c.input_name for c in parity.comparisons if parity.tier.failures(c)} & FLAT_INPUTS
    flat = [given for given in inputs if given.name in failing]
    # FCNs normalise nothing.
    if bound is None or not flat or not isinstance(info.network, ModuleSpec):
        return ()
    size = max(map(abs, info.preprocessing.bounds)) * _ROUNDING
    noise = np.random.default_rng(0).uniform(-size, size, flat[0].image.shape)
    # Float64 on purpose: in float32 the noise would be rounded away.
    moved = [replace(given, image=cast("FloatArray", given.image + noise)) for given in flat]
    batch, channels, height, width = flat[0].image.shape
    network = rebuild(info, options.rebuild_options).network.double()
    exact = run_all(EagerRunner(network, (batch, channels, height, width)), [*flat, *moved], on_step)
    found = compare_all(info, flat, exact[: len(flat)], exact[len(flat) :])
    return tuple(c.input_name for c in found if not c.severity <= bound)


def _distances(
    info: ModelInfo,
    inputs: Sequence[ParityInput],
    references: list[Outputs],
    candidates: list[Outputs],
    exact: list[Outputs],
) -> tuple[ExactErrors, ...]:
    if not exact:
        return ()
    pairs = zip(compare_all(info, inputs, exact, references), compare_all(info, inputs, exact, candidates), strict=True)
    return tuple(ExactErrors(ours.input_name, ours.severity, theirs.severity) for ours, theirs in pairs)


def _save_worst(artifact: Artifact, options: VerifyOptions, worst: ParityInput, *, passed: bool) -> Path | None:
    """Save an input in the form that the model takes, if it is asked for or the check failed; return its file."""
    if options.save_worst is None and passed:
        return None
    path = options.save_worst or artifact.model_path.parent / WORST_INPUT_FILE
    pixels = worst.pixels if artifact.info.image_input is ImageInput.UINT8 else None
    try:
        with staged_file(path) as staging, staging.open("wb") as file:
            np.save(file, worst.image if pixels is None else pixels)
    except OutputError:
        # A failed copy must not hide the verdict: the bundle may be on a read-only file system.
        if options.save_worst is not None:
            raise
        return None
    return path
