"""Run first, compare later: one runner at a time over all inputs, then the outputs pair by pair."""

from collections.abc import Sequence
from typing import Any

import numpy.typing as npt

from fcn_deploy.parity.compare import LabelComparison, compare_outputs
from fcn_deploy.parity.inputs import ParityInput
from fcn_deploy.runtime.base import Runner
from fcn_deploy.steps import OnStep

Outputs = dict[str, npt.NDArray[Any]]


def run_all(runner: Runner, inputs: Sequence[ParityInput], on_step: OnStep) -> list[Outputs]:
    """Open `runner`, run it on every input, close it, so that no two runtimes hold memory at once."""
    outputs = []
    with on_step(f"run {runner.name} on {_names(inputs)}", len(inputs)) as advance, runner:
        for given in inputs:
            spec = runner.inputs[0]
            outputs.append(runner.run({spec.name: given.feed(spec)}))
            advance()
    return outputs


def compare_all(
    inputs: Sequence[ParityInput], references: Sequence[Outputs], candidates: Sequence[Outputs]
) -> tuple[LabelComparison, ...]:
    """Compare the outputs of two runners, input by input.

    Raises:
        ParityError: names or shapes of the outputs differ.
    """
    triples = zip(inputs, references, candidates, strict=True)
    return tuple(compare_outputs(given.name, expected, actual) for given, expected, actual in triples)


def _names(inputs: Sequence[ParityInput]) -> str:
    few = len(inputs) <= 2
    return " and ".join(given.name for given in inputs) if few else f"{len(inputs)} inputs"
