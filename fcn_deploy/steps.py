"""How the library tells a caller what it is doing, without printing."""

import contextlib
from collections.abc import Callable
from contextlib import AbstractContextManager

# Called with what is about to be done; the context lasts as long as the doing.
OnStep = Callable[[str], AbstractContextManager[object]]


def quietly(_step: str) -> AbstractContextManager[object]:
    """Tell nobody: the default of every library function that takes an `OnStep`."""
    return contextlib.nullcontext()
