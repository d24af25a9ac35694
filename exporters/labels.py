"""What labels mean: names and colours from files, and the threshold of a single class."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from fcn_deploy.errors import InputFileError, UsageError
from fcn_deploy.model_info import ModelInfo, parse_colour

_Entry = TypeVar("_Entry")


@dataclass(frozen=True)
class LabelOptions:
    """What labels mean.

    Attributes:
        class_names: text file with the name of a label per line, from 0 on; None takes the checkpoint's.
        palette: text file with the colour of a label per line, such as #1f77b4; None takes Pascal VOC's.
        threshold: probability above which a pixel of the only class is labelled 1; None is 0.5.

    Raises:
        UsageError: the threshold is not between 0 and 1.
    """

    class_names: Path | None = None
    palette: Path | None = None
    threshold: float | None = None

    def __post_init__(self) -> None:
        if self.threshold is not None and not 0 < self.threshold < 1:
            raise UsageError(
                f"threshold {self.threshold:g} is out of bounds: above 0, below 1",
                remedy="Pass a probability to --threshold; the default is 0.5.",
            )

    def apply(self, info: ModelInfo) -> ModelInfo:
        """Return the facts with these names, colours and this threshold.

        Raises:
            UsageError: a threshold, and there are several classes.
            InputFileError: a file cannot be read, or has another number of entries than there are labels.
        """
        if self.threshold is not None and info.network.num_classes > 1:
            raise UsageError(
                f"threshold {self.threshold:g} is for a single class, and there are {info.network.num_classes}: the "
                "largest logit is the label",
                remedy="Omit --threshold.",
            )
        found = replace(info, threshold=self.threshold)
        if self.class_names is not None:
            found = replace(found, names=_entries(self.class_names, "name", info.num_labels, str))
        if self.palette is not None:
            found = replace(found, colours=_entries(self.palette, "colour", info.num_labels, parse_colour))
        return found


def _entries(path: Path, what: str, count: int, parse: Callable[[str], _Entry]) -> tuple[_Entry, ...]:
    """Read a text file with an entry per line; empty lines are left out."""
    try:
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        remedy = f"Pass a text file with a {what} per line."
        raise InputFileError(f"{path} cannot be read: {reason}", remedy=remedy) from error
    numbered = [(number, line.strip()) for number, line in enumerate(lines, start=1) if line.strip()]
    found = []
    for number, line in numbered:
        try:
            found.append(parse(line))
        except ValueError as error:
            raise InputFileError(f"{path}, line {number}: {error}", remedy=f"Write a {what} per line.") from error
    if len(found) != count:
        raise InputFileError(
            f"{path} has {len(found)} {what}s, and the model has {count} labels",
            remedy=f"Write a {what} per line, in the order of the labels, the background's first if there is one.",
        )
    return tuple(found)
