"""The ways to choose how far 8 bits reach; importing this loads nothing heavy."""

from enum import StrEnum


class Calibration(StrEnum):
    """How the threshold of a map is chosen, beyond which its values are clipped."""

    MINMAX = "minmax"  # nothing is clipped
    PERCENTILE = "percentile"  # the largest 0.001 % are
    ENTROPY = "entropy"  # least Kullback-Leibler divergence between the values and their 8-bit versions
