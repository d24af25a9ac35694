"""`fcn-deploy predict`."""

from typing import Annotated

import typer

from fcn_deploy.choices import EngineName, OutputFormat, Provider
from fcn_deploy.cli.parameters import ArtifactPath, Json, KeepAspect, RunProvider, inference_option, output_option


def predict(
    bundle: ArtifactPath,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Photos, directories (without subdirectories), or patterns such as 'photos/**/*.jpg'.",
        ),
    ],
    keep_aspect: KeepAspect = False,
    provider: RunProvider = Provider.CPU,
    engine: Annotated[
        EngineName, inference_option(help="Threads of this process, or a Ray cluster.")
    ] = EngineName.LOCAL,
    address: Annotated[
        str | None, inference_option(help="Address of the Ray cluster (HOST:PORT or auto). Default: start one here.")
    ] = None,
    output: Annotated[str, output_option(metavar="DIR|URL", help="Where to write the results.")] = "predictions",
    output_format: Annotated[OutputFormat, output_option(help="What to write for each photo.")] = OutputFormat.PNG,
    json: Json = False,
) -> None:
    """Segment photos of any size: for each a palette PNG of labels and an overlay with a legend.

    Photos that already have results are skipped, so an interrupted run can be repeated.

    Exit code 3: a photo cannot be read. It is listed in failures.jsonl; the others are segmented.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import counted, print_json, print_line, print_untrained
    from fcn_deploy.cli.render import print_prediction

    paths = fd.find_images(images)
    options = fd.PredictOptions(output, keep_aspect, provider, output_format, engine, address)
    summary = fd.PredictionSummary()
    found = []
    for prediction in counted(fd.predict(bundle, paths, options), summary, len(paths)):
        if json:
            found.append(prediction.to_dict())
        else:
            print_prediction(prediction)
    if json:
        print_json(found)
    print_line(str(summary), to_stderr=True)
    if summary.untrained:
        print_untrained()
    if summary.failed:
        raise typer.Exit(fd.ImageError.exit_code)
