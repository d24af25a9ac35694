"""`fcn-deploy verify`."""

from pathlib import Path
from typing import Annotated

import typer

from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import ArtifactPath, Json, MadeFrom

EPILOG = "Example: fcn-deploy verify fcn8s --checkpoint fcn8s.pth --image photo.jpg"


def verify(
    bundle: ArtifactPath,
    checkpoint: MadeFrom = None,
    image: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="A photo, or an input saved as .npy; may be repeated. Default: a portrait that comes along.",
        ),
    ] = None,
    samples: Annotated[int, typer.Option(help="Number of noise inputs.")] = 1,
    provider: Annotated[Provider, typer.Option(help="Where ONNX Runtime runs the artifact.")] = Provider.CPU,
    exact: Annotated[
        bool,
        typer.Option("--exact", metavar="", help="Measure both sides against float64 too (slow; 5 GB at full size)."),
    ] = False,
    layers: Annotated[
        bool,
        typer.Option("--layers", metavar="", help="Compare every layer on the worst input: which goes wrong first?"),
    ] = False,
    save_worst: Annotated[
        Path | None,
        typer.Option(
            help="Where to save the worst input, as .npy. Default: beside a failing model.", show_default=False
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Compare an artifact with the PyTorch network it was exported from, on a photo and on hard inputs.

    Exit code 0 when every bound holds, 5 when one does not; the worst input is then saved for replay.
    """
    from rich.markup import escape

    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, print_line, show_step
    from fcn_deploy.cli.render import placed, print_layers, print_parity

    options = fd.VerifyOptions(checkpoint, tuple(image or ()), samples, provider, exact, layers, save_worst)
    result = fd.verify(bundle, options, show_step)
    if json:
        print_json(result.to_dict())
    else:
        print_parity(result.parity)
        if result.layers is not None:
            print_layers(result.layers)
        print_line(placed(result.placement))
        print_line(f"[bold]{result.info.network}[/], {result.info.provenance}")
        if result.worst_input is not None:
            print_line(f"saved the worst input: {escape(str(result.worst_input))} (replay it with --image)")
    result.require()
