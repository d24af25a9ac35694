"""How the library tells a caller what it is doing, without printing."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Protocol

# Called after each part of a step that has several.
Advance = Callable[[], None]


class OnStep(Protocol):
    """Called with what is about to be done; the context lasts as long as the doing."""

    def __call__(self, step: str, parts: int = 1, /) -> AbstractContextManager[Advance]:
        """Begin a step of so many parts; the context gives what to call after each of them."""


def quietly(_step: str, _parts: int = 1, /) -> AbstractContextManager[Advance]:
    """Tell nobody: the default of every library function that takes an `OnStep`."""
    return contextlib.nullcontext(lambda: None)
