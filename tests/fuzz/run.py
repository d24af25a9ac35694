"""Run cases of a target: drawn by Hypothesis from a seed, each checked, the smallest form of a finding reported."""

import resource
import signal
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import hypothesis
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st

from tests.fuzz.ground import BrokenRuleError, Ground, user_files
from tests.fuzz.mutations import Draw
from tests.fuzz.targets import make_sound, opened

CASE_SECONDS = 60
# What all cases of a block together may add to the peak of this process, with its runtimes and their arenas.
MAX_GROWTH_BYTES = 1_500_000_000
_PEAK_UNIT = 1 if sys.platform == "darwin" else 1024


@dataclass(frozen=True)
class Block:
    """Cases of one target, from one seed."""

    target: str
    seed: int
    cases: int


@dataclass(frozen=True)
class Outcome:
    """What a block's cases showed."""

    cases: int  # cases that ran, those that made a finding smaller included
    finding: str | None  # the rule that was broken, or None
    grown_bytes: int  # by how much the process's peak memory grew

    def to_dict(self) -> dict[str, Any]:
        """Return every fact, for JSON."""
        return asdict(self)


def run_block(block: Block, folder: Path) -> Outcome:
    """Run the cases of a block in this process, in a folder of its own."""
    for name in ("sound", "user", "temporary"):
        (folder / name).mkdir(parents=True, exist_ok=True)
    sound = make_sound(folder / "sound")
    ground = Ground(folder / "user", user_files(sound.model))
    ran, peak = 0, _peak_bytes()
    with opened(block.target, sound) as case:

        @hypothesis.seed(block.seed)
        @settings(
            max_examples=block.cases, deadline=None, database=None, suppress_health_check=list(HealthCheck),
            phases=[Phase.generate, Phase.shrink], report_multiple_bugs=False,
        )  # fmt: skip
        @hypothesis.given(st.data())
        def cases(data: st.DataObject) -> None:
            nonlocal ran
            ran += 1
            ground.reset()
            signal.alarm(CASE_SECONDS)
            with ground.watched():
                case(sound, ground, Draw(data.draw))
            signal.alarm(0)

        finding = _finding(cases)
    grown = _peak_bytes() - peak
    if finding is None and grown > MAX_GROWTH_BYTES:
        finding = f"memory grew by {grown / 1e6:.0f} MB"
    return Outcome(ran, finding, grown)


def _finding(cases: Any) -> str | None:
    before = signal.signal(signal.SIGALRM, _too_long)
    try:
        cases()
    except hypothesis.errors.Flaky as error:
        return f"only sometimes: {error}"
    except Exception as error:  # whatever it is, it reached the user
        return f"{type(error).__name__}: {error}"[:4000]
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)
    return None


def _too_long(*_: object) -> None:
    raise BrokenRuleError(f"a case took longer than {CASE_SECONDS} s")


def _peak_bytes() -> int:
    return (
        sum(resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)) * _PEAK_UNIT
    )
