"""Callbacks that report the library's progress; the library itself prints nothing."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

# Called after each part of a step.
Advance = Callable[[], None]


class OnStep(Protocol):
    """A callback for the beginning of a step; its context manager lasts as long as the step."""

    def __call__(self, step: str, parts: int = 1, /) -> AbstractContextManager[Advance]:
        """Begin a step of `parts` parts; the context manager returns a function to call after each part."""


def quietly(_step: str, _parts: int = 1, /) -> AbstractContextManager[Advance]:
    """Report nothing: the default of every function that takes an `OnStep`."""
    return contextlib.nullcontext(lambda: None)
