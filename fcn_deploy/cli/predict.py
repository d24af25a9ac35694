"""`fcn-deploy predict`."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.choices import EngineName, OutputFormat, Provider
from fcn_deploy.cli.parameters import ArtifactPath, Json

if TYPE_CHECKING:
    from fcn_deploy.prediction.options import Prediction
    from fcn_deploy.prediction.run import PredictionSummary

EPILOG = "Example: fcn-deploy predict fcn8s photos/ --output labels"
_SHOWN_CLASSES = 3


def predict(
    bundle: ArtifactPath,
    images: Annotated[list[str], typer.Argument(metavar="IMAGE...", help="Photos, directories or glob patterns.")],
    output: Annotated[str, typer.Option(metavar="DIR|URL", help="Where results go.")] = "predictions",
    output_format: Annotated[OutputFormat, typer.Option(help="What is written for each photo.")] = OutputFormat.PNG,
    keep_aspect: Annotated[
        bool,
        typer.Option("--keep-aspect", metavar="", help="Pad photos to the input's shape instead of stretching them."),
    ] = False,
    provider: Annotated[Provider, typer.Option(help="Where ONNX Runtime runs.")] = Provider.CPU,
    engine: Annotated[EngineName, typer.Option(help="Threads of this process, or a Ray cluster.")] = EngineName.LOCAL,
    address: Annotated[
        str | None,
        typer.Option(help="Of the Ray cluster (HOST:PORT, auto). Default: one is started here.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Segment photos of any size: a palette PNG of labels and an overlay with a legend for each, or another format.

    Photos whose results are there already are left alone, so that an interrupted run goes on where it was. A photo
    that cannot be read is reported, listed in failures.jsonl, and the rest go on; the exit code is then 3.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, print_line

    paths = fd.find_images(images)
    options = fd.PredictOptions(output, keep_aspect, provider, output_format, engine, address)
    summary = fd.PredictionSummary()
    found = []
    for prediction in _with_progress(fd.predict(bundle, paths, options), summary, len(paths)):
        if json:
            found.append(prediction.to_dict())
        else:
            _show(prediction)
    if json:
        print_json(found)
    print_line(str(summary), to_stderr=True)
    if summary.untrained:
        print_line("untrained weights: the labels mean nothing", to_stderr=True)
    if summary.failed:
        raise typer.Exit(fd.ImageError.exit_code)


def _with_progress(
    predictions: "Iterator[Prediction]", summary: "PredictionSummary", total: int
) -> "Iterator[Prediction]":
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    from fcn_deploy.cli.console import err

    rate = TextColumn("{task.fields[rate]:.3g} images/s")
    columns = (TextColumn("segment"), BarColumn(), MofNCompleteColumn(), rate, TimeRemainingColumn())
    with Progress(*columns, console=err, transient=True, disable=not err.is_terminal) as progress:
        task = progress.add_task("", total=total, rate=0.0)
        for prediction in summary.counting(predictions):
            progress.update(task, advance=1, rate=summary.images_per_s)
            yield prediction


def _show(prediction: "Prediction") -> None:
    from rich.markup import escape

    from fcn_deploy.cli.console import print_line, show_error

    if prediction.failure is not None:
        show_error(prediction.failure)
        return
    classes = ", ".join(f"{name} {share:.0%}" for name, share in prediction.shares[:_SHOWN_CLASSES])
    what = "done before" if prediction.done_before else classes
    print_line(escape(f"{prediction.image} -> {prediction.files[0]}  {what}"))
