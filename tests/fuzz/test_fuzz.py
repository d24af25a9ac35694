"""A short run of every target, always the same, and planted faults that it has to find."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.fuzz.run import Block, run_block
from tests.fuzz.targets import TARGETS


@pytest.mark.parametrize("target", TARGETS)
def test_no_command_breaks_a_rule(target: str, tmp_path: Path) -> None:
    outcome = run_block(Block(target, seed=0, cases=80), tmp_path)

    assert outcome.finding is None
    assert outcome.cases >= 80


def unchecked(facts: Any, *_: object) -> Any:
    return SimpleNamespace(**facts)


PLANTED: dict[str, tuple[str, object, str]] = {
    "manifest": ("fcn_deploy.artifact.bundle._check_files", lambda *_: None, "outside"),
    "sidecar": ("fcn_deploy.artifact.engine.convert_facts", unchecked, "Error"),
    "dataset": ("fcn_deploy.evaluation.data._check_values", lambda *_: None, "exit code 70"),
}


@pytest.mark.parametrize("target", PLANTED)
def test_planted_faults_are_found(target: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A check that is left out is noticed."""
    place, broken, rule = PLANTED[target]
    monkeypatch.setattr(place, broken)

    outcome = run_block(Block(target, seed=0, cases=200), tmp_path)

    assert outcome.finding is not None
    assert rule in outcome.finding
