"""How far an exported graph is rewritten, and for what; importing this loads nothing heavy."""

from enum import StrEnum


class Optimize(StrEnum):
    """The levels, each of which includes the one before."""

    NONE = "none"
    SIMPLIFY = "simplify"
    EXACT = "exact"


class Target(StrEnum):
    """What a rewritten graph is to run on: it decides which of several exact rewrites is the cheapest."""

    CPU = "cpu"
    CUDA = "cuda"
    TENSORRT = "tensorrt"
