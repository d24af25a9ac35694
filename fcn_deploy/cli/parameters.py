"""Options that several commands share, and the parsing of sizes."""

import re
from pathlib import Path
from typing import Annotated

import typer

from fcn_deploy.assets import SAMPLE_CHECKPOINT
from fcn_deploy.choices import Target

BundlePath = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle's directory, or an ONNX file.", show_default=False)
]
ArtifactPath = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE", help="A bundle's directory, an ONNX file, or a TensorRT engine (.plan).", show_default=False
    ),
]
Json = Annotated[
    bool, typer.Option("--json", metavar="", help="Print one JSON document on stdout and nothing else there.")
]
RewriteTarget = Annotated[
    Target | None,
    typer.Option(
        help="What the rewrites are chosen for. Default: cuda with an NVIDIA driver, else cpu.", show_default=False
    ),
]

SAMPLE = "sample"


def parse_checkpoint(text: str) -> Path:
    """A path, or `sample` for the checkpoint that comes along (a file of that name is `./sample`)."""
    return SAMPLE_CHECKPOINT if text == SAMPLE else Path(text)


MadeFrom = Annotated[
    Path | None,
    typer.Option(
        parser=parse_checkpoint,
        metavar="PATH",
        help="The checkpoint it was exported from, or sample.",
        show_default=False,
    ),
]

MAX_DIGITS = 9


def parse_batches(text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers, each once; nothing for an empty text.

    Raises:
        typer.BadParameter: it is something else.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(part.isascii() and part.isdigit() and len(part) <= MAX_DIGITS and int(part) for part in parts):
        raise typer.BadParameter(f"{text!r} is no list of batches such as 1,2,4", param_hint="--batch")
    return tuple(dict.fromkeys(int(part) for part in parts))


def parse_capabilities(text: str) -> tuple[str, ...]:
    """`8.9,12.0` as compute capabilities in ascending order, each once; nothing for an empty text.

    Raises:
        typer.BadParameter: it is something else.
    """
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(re.fullmatch(r"[0-9]{1,2}\.[0-9]", part) for part in parts):
        raise typer.BadParameter(
            f"{text!r} is no list of compute capabilities such as 8.9,12.0", param_hint="--compute-capability"
        )
    return tuple(sorted(set(parts), key=float))


def parse_size(text: str) -> tuple[int, int]:
    """`500` or `HxW` as (height, width) in pixels.

    Raises:
        typer.BadParameter: it is neither.
    """
    sides = text.lower().split("x")
    if len(sides) > 2 or not all(side.isascii() and side.isdigit() and len(side) <= MAX_DIGITS for side in sides):
        raise typer.BadParameter(f"{text!r} is neither a number of pixels (500) nor HxW (375x500)", param_hint="--size")
    return int(sides[0]), int(sides[-1])
