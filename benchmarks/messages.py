"""What the benchmark and the processes of its rows tell each other; all of it is pickled."""

from dataclasses import dataclass, field

from benchmarks.cases import Case
from benchmarks.workspace import Workspace
from fcn_deploy.parity.compare import LabelComparison
from fcn_deploy.runtime.provider import Provider


@dataclass(frozen=True)
class Job:
    """What one process measures, and where it may run."""

    case: Case
    workspace: Workspace
    provider: Provider
    cores: tuple[int, ...]


@dataclass(frozen=True)
class Opened:
    """A runtime that is ready to run: version, what was set, how many nodes each provider runs, nanoseconds it took."""

    version: str
    options: str
    placement: dict[str, int]
    load_ns: int


@dataclass(frozen=True)
class FirstRuns:
    """Nanoseconds of the very first run and of the one after it, and what was computed against the reference."""

    first_ns: int
    next_ns: int
    comparisons: list[LabelComparison]


@dataclass(frozen=True)
class Samples:
    """One round: nanoseconds of each run, and of each phase that was timed besides."""

    run_ns: list[int]
    phases_ns: dict[str, list[int]] = field(default_factory=dict)


@dataclass(frozen=True)
class Failure:
    """Why a row stopped.

    Attributes:
        out_of_memory: whether there was too little memory.
        message: what the runtime said, in one line.
    """

    out_of_memory: bool
    message: str
