"""How far TensorRT's builder is, and stopping it."""

import threading
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any


@dataclass(frozen=True)
class Phase:
    """A phase of a build.

    Attributes:
        name: as TensorRT calls it.
        steps: how many it has.
        done: how many are.
    """

    name: str
    steps: int
    done: int = 0

    def __str__(self) -> str:
        return f"{self.name} {self.done}/{self.steps}"


# Called with the phases that are under way, the outermost first, from threads of TensorRT's.
OnPhases = Callable[[tuple[Phase, ...]], None]


def untold(_phases: tuple[Phase, ...]) -> None:
    """Tell nobody: the default."""


class Progress:
    """The phases under way; stopped builds end at their next step."""

    def __init__(self, on_phases: OnPhases) -> None:
        self._tell, self._lock = on_phases, threading.Lock()
        self._phases: dict[str, Phase] = {}
        self._stopped = False
        self.failure: Exception | None = None

    def stop(self) -> None:
        """End the build at its next step."""
        self._stopped = True

    def start(self, name: str, steps: int) -> None:
        """A phase begins."""
        self._update({**self._phases, name: Phase(name, steps)})

    def step(self, name: str, step: int) -> bool:
        """A step, counted from 0, is done; returns whether the build is to go on."""
        if name in self._phases:
            self._update({**self._phases, name: replace(self._phases[name], done=step + 1)})
        return not self._stopped

    def finish(self, name: str) -> None:
        """A phase ends."""
        self._update({key: phase for key, phase in self._phases.items() if key != name})

    def _update(self, phases: dict[str, Phase]) -> None:
        with self._lock:
            self._phases = phases
            try:
                self._tell(tuple(phases.values()))
            except Exception as error:  # must not pass through TensorRT, which is not Python
                self.failure = self.failure or error
                self._stopped = True


def monitor(trt: Any, progress: Progress) -> Any:
    """TensorRT's own interface to `progress`; has to live as long as the build."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc] # TensorRT's bindings have no types
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, _parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()
