"""Callbacks that tell a caller what the library is doing; the library itself prints nothing."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

# Called after each part of a step that has several.
Advance = Callable[[], None]


class OnStep(Protocol):
    """Called with a step that begins; the context lasts as long as the step."""

    def __call__(self, step: str, parts: int = 1, /) -> AbstractContextManager[Advance]:
        """Begin a step of `parts` parts; the context gives what to call after each of them."""


def quietly(_step: str, _parts: int = 1, /) -> AbstractContextManager[Advance]:
    """Report nothing: the default of every function that takes an `OnStep`."""
    return contextlib.nullcontext(lambda: None)
