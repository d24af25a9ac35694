"""What a benchmark is asked for, and how it says how far it is."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.results import Row
from benchmarks.timing import Protocol
from fcn_deploy.runtime.provider import Provider


@dataclass(frozen=True)
class BenchOptions:
    """What is measured, where, and for how long.

    Attributes:
        provider: where.
        rows: names of cases; empty takes all that make sense on the provider.
        batches: only bundles of these batches; empty takes all.
        protocol: how samples are taken.
        threads: cores that every row may use, and no more; None is all there are.
        checkpoint: what the bundles were exported from, if from one.
        command: what was typed, for the record.
        answer_s: seconds after which a row that does not answer is given up; None waits for ever.
    """

    provider: Provider = Provider.CPU
    rows: tuple[str, ...] = ()
    batches: tuple[int, ...] = ()
    protocol: Protocol = field(default_factory=Protocol)
    threads: int | None = None
    checkpoint: Path | None = None
    command: tuple[str, ...] = ()
    answer_s: float | None = None


@dataclass(frozen=True)
class Progress:
    """How far a benchmark is.

    Attributes:
        step: what is being done.
        rows: every row so far, finished or not.
        remaining_s: seconds until its end, as far as can be told; None before that.
    """

    step: str
    rows: tuple[Row, ...]
    remaining_s: float | None = None


OnProgress = Callable[[Progress], None]
