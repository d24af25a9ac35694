"""How far an exported graph is rewritten; importing this loads nothing heavy."""

from enum import StrEnum


class Optimize(StrEnum):
    """The levels, each of which includes the one before."""

    NONE = "none"
    SIMPLIFY = "simplify"
