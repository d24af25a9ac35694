"""One exception family: every error states the value, the bound and the remedy, and carries its exit code.

The command line maps `FcnDeployError.exit_code` to the process's exit status; the library only raises.
"""

from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar


class FcnDeployError(Exception):
    """Base of every error this toolkit raises on purpose.

    Args:
        problem: what is wrong, with the offending value and the bound it broke.
        remedy: what the user can do about it.
    """

    exit_code: ClassVar[int] = 1

    def __init__(self, problem: str, *, remedy: str) -> None:
        super().__init__(problem)
        self.problem = problem
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.problem}\n{self.remedy}"

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[str]]:
        # Errors are pickled between processes; by default only positional arguments would be restored.
        return partial(type(self), remedy=self.remedy), (self.problem,)


class UsageError(FcnDeployError):
    """An option or argument is out of its bounds (exit code 2)."""

    exit_code = 2


class SizeError(UsageError):
    """An image size that the chosen variant and geometry cannot map back onto itself (exit code 2)."""


class InputFileError(FcnDeployError):
    """A file or directory that the user passed cannot be read or written (exit code 3)."""

    exit_code = 3


class CheckpointError(InputFileError):
    """A checkpoint that is unreadable, unsafe, or does not fit the network (exit code 3)."""


class ModuleError(InputFileError):
    """A network of the user's own code that cannot be imported, built, run or exported (exit code 3)."""


class ImageError(InputFileError):
    """An image that cannot be decoded into one 8-bit RGB picture (exit code 3)."""


class BundleError(InputFileError):
    """A bundle or ONNX file that is missing, incomplete, or not the one its manifest describes (exit code 3)."""


class OutputError(InputFileError):
    """A result cannot be written to the requested place (exit code 3)."""


class ProviderError(FcnDeployError):
    """The requested execution provider cannot run the model (exit code 4)."""

    exit_code = 4


class ParityError(FcnDeployError):
    """The artifact does not compute the network it was exported from (exit code 5)."""

    exit_code = 5


class MeasurementError(FcnDeployError):
    """Latencies that cannot be relied on: unstable, or no row could be measured (exit code 6)."""

    exit_code = 6


class RegressionError(FcnDeployError):
    """A comparison of two benchmark reports found a row that became slower (exit code 7)."""

    exit_code = 7


class InternalError(FcnDeployError):
    """The command line's last resort: an exception that nobody expected (exit code 70, sysexits' EX_SOFTWARE)."""

    exit_code = 70


def check_range(what: str, value: float, lower: float, upper: float | None = None, *, option: str) -> None:
    """Check that `lower <= value <= upper`; without `upper` only the lower bound counts. NaN fails.

    The UsageError calls the value `what`, with its unit if it has one, and names the `option` to pass another to.
    """
    if value >= lower and (upper is None or value <= upper):
        return
    bounds = f"at least {lower:.15g}" if upper is None else f"{lower:.15g} to {upper:.15g}"
    raise UsageError(f"{what} {value} is out of bounds: {bounds}", remedy=f"Pass {bounds} to {option}.")
