"""Arguments and options that several commands share: help panels and parsing."""

import re
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

import fcn_deploy as fd
from fcn_deploy.assets import SAMPLE_CHECKPOINT
from fcn_deploy.choices import ChannelOrder, Preset, Provider, UpsampleMode

if TYPE_CHECKING:
    from fcn_deploy.preprocessing import Preprocessing

OUTPUT = "Output"
# The name of the checkpoint and the scene that are bundled with the package.
SAMPLE = "sample"
_MAX_DIGITS = 9
_CHANNELS = 3


def panel(title: str) -> Callable[..., Any]:
    """Return `typer.Option` for the options that `--help` shows in the box with this title."""
    return partial(typer.Option, rich_help_panel=title)


inference_option = panel("Inference")
output_option = panel(OUTPUT)


def parse_checkpoint(text: str) -> Path:
    """Return a path, the bundled checkpoint's for `sample` (a file of that name is `./sample`)."""
    return SAMPLE_CHECKPOINT if text == SAMPLE else Path(text)


ArtifactPath = Annotated[
    Path,
    typer.Argument(
        metavar="BUNDLE", help="A bundle's directory, an ONNX file, or a TensorRT engine (.plan).", show_default=False
    ),
]
SourceCheckpoint = Annotated[
    Path | None,
    typer.Option(
        parser=parse_checkpoint, metavar="PATH", help="The checkpoint that the bundle was exported from, or 'sample'."
    ),
]
SourceModule = Annotated[
    str | None,
    typer.Option("--module", metavar="SOURCE", help="The module that the bundle was exported from; its code is run."),
]
ModuleChanged = Annotated[
    bool, typer.Option("--module-changed", help="Accept that the module's file has changed since the export.")
]
RunProvider = Annotated[Provider, inference_option(help="Where ONNX Runtime runs.")]
NoCache = Annotated[
    bool, inference_option("--no-cache", help="Open the model from its own file, not from its prepared session.")
]
KeepAspect = Annotated[bool, inference_option("--keep-aspect", help="Pad photos instead of stretching them.")]
Force = Annotated[bool, output_option("--force", help="Replace an existing output.")]
Json = Annotated[bool, output_option("--json", help="Print one JSON document and nothing else on stdout.")]


def parse_batches(text: str) -> tuple[int, ...]:
    """Parse `1,2,4` into distinct numbers; an empty text yields none.

    Raises:
        typer.BadParameter: the text is not such a list.
    """
    found = _listed(text, r"0*[1-9][0-9]{,8}", "batches such as 1,2,4", "--batch")
    return tuple(dict.fromkeys(map(int, found)))


def parse_capabilities(text: str) -> tuple[str, ...]:
    """Parse `8.9,12.0` into distinct compute capabilities in ascending order; an empty text yields none.

    Raises:
        typer.BadParameter: the text is not such a list.
    """
    found = _listed(text, r"[0-9]{1,2}\.[0-9]", "compute capabilities such as 8.9,12.0", "--compute-capability")
    return tuple(sorted(set(found), key=float))


def parse_size(text: str) -> tuple[int, int]:
    """Parse `500` or `HxW` into (height, width) in pixels.

    Raises:
        typer.BadParameter: the text has neither form.
    """
    numbers = text.lower().split("x")
    if len(numbers) > 2 or not all(n.isascii() and n.isdigit() and len(n) <= _MAX_DIGITS for n in numbers):
        raise typer.BadParameter(f"{text!r} is neither a number of pixels (500) nor HxW (375x500)", param_hint="--size")
    return int(numbers[0]), int(numbers[-1])


def parse_module(
    source: str | None, arguments: str, output_key: str | None, upsample: UpsampleMode, *, align_corners: bool
) -> "fd.ModuleOptions | None":
    """Return the network of the user's own; None without a source.

    Raises:
        typer.BadParameter: options of a network are given without a source.
        UsageError: a value is out of its bounds.
    """
    given = {
        "--module-args": arguments != "{}",
        "--output-key": output_key is not None,
        "--upsample": upsample is not UpsampleMode.NONE,
        "--align-corners": align_corners,
    }
    if source is not None:
        return fd.ModuleOptions(source, arguments, output_key, upsample, align_corners)
    for option in (option for option, is_given in given.items() if is_given):
        raise typer.BadParameter("it is for networks of your own: pass --module, too, or omit it", param_hint=option)
    return None


def parse_preprocessing(
    preset: Preset | None,
    order: ChannelOrder | None,
    scale: float | None,
    mean: str | None,
    std: str | None,
    *,
    is_fcn: bool,
) -> "Preprocessing | None":
    """Return a preset with the values that are given in place of its own; None if a module's is not named.

    Raises:
        typer.BadParameter: a text is not three numbers.
        UsageError: a value is out of its bounds.
    """
    from fcn_deploy.preprocessing import PRESETS

    if preset is None and not is_fcn:
        return None
    chosen = PRESETS[preset or Preset.CAFFE]
    base = chosen.with_order(order) if order is not None else chosen
    given: dict[str, Any] = {
        "scale": scale,
        "mean": _parse_channels(mean, "--mean") if mean is not None else None,
        "std": _parse_channels(std, "--std") if std is not None else None,
    }
    return replace(base, **{name: value for name, value in given.items() if value is not None})


def _parse_channels(text: str, option: str) -> tuple[float, ...]:
    try:
        numbers = tuple(float(part) for part in re.split(r"[,\s]+", text.strip()))
    except ValueError:
        numbers = ()
    if len(numbers) != _CHANNELS:
        raise typer.BadParameter(
            f"{text!r} is not three numbers, one for each channel, such as 0.485,0.456,0.406", param_hint=option
        )
    return numbers


def _listed(text: str, pattern: str, what: str, option: str) -> list[str]:
    parts = [part.strip() for part in text.split(",")] if text.strip() else []
    if not all(re.fullmatch(pattern, part) for part in parts):
        raise typer.BadParameter(f"{text!r} is not a list of {what}", param_hint=option)
    return parts
