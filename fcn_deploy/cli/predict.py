"""`fcn-deploy predict`."""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.cli.parameters import ArtifactPath, Json
from fcn_deploy.runtime.provider import Provider

if TYPE_CHECKING:
    from fcn_deploy.prediction import Prediction

EPILOG = "Example: fcn-deploy predict fcn8s photos/ --output labels"
_SHOWN_CLASSES = 3


def predict(
    bundle: ArtifactPath,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Photos, directories or glob patterns.")],
    output: Annotated[Path, typer.Option(help="Directory of the label maps and overlays.")] = Path("predictions"),
    keep_aspect: Annotated[
        bool,
        typer.Option("--keep-aspect", metavar="", help="Pad photos to the input's shape instead of stretching them."),
    ] = False,
    provider: Annotated[Provider, typer.Option(help="Where ONNX Runtime runs.")] = Provider.CPU,
    json: Json = False,
) -> None:
    """Segment photos of any size: a palette PNG of labels and an overlay with a legend for each.

    A photo that cannot be read is reported and the rest go on; the exit code is then 3.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, print_line

    paths = fd.find_images(images)
    found = []
    for prediction in _with_progress(
        fd.predict(bundle, paths, fd.PredictOptions(output, keep_aspect, provider)), len(paths)
    ):
        found.append(prediction)
        if not json:
            _show(prediction)
    if json:
        print_json([prediction.to_dict() for prediction in found])
    if any(prediction.untrained for prediction in found):
        print_line("untrained weights: the labels mean nothing", to_stderr=True)
    failed = sum(prediction.failure is not None for prediction in found)
    if failed:
        print_line(f"{failed} of {len(found)} photos failed", to_stderr=True)
        raise typer.Exit(fd.ImageError.exit_code)


def _with_progress(predictions: "Iterator[Prediction]", total: int) -> "Iterator[Prediction]":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fcn_deploy.cli.console import err

    columns = (TextColumn("segment"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        yield from progress.track(predictions, total=total)


def _show(prediction: "Prediction") -> None:
    from rich.markup import escape

    from fcn_deploy.cli.console import print_line, show_error

    if prediction.failure is not None:
        show_error(prediction.failure)
        return
    classes = ", ".join(f"{name} {share:.0%}" for name, share in prediction.shares[:_SHOWN_CLASSES])
    print_line(escape(f"{prediction.image} -> {prediction.overlay_path}  {classes}"))
