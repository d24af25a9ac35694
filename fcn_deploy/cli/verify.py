"""`fcn-deploy verify`."""

from pathlib import Path
from typing import Annotated

from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import ArtifactPath, Json, RunProvider, SourceCheckpoint, output_option, panel

comparison_option = panel("Comparison")
inputs_option = panel("Inputs")


def verify(
    bundle: ArtifactPath,
    checkpoint: SourceCheckpoint = None,
    image: Annotated[
        list[Path] | None,
        inputs_option(
            metavar="PATH", help="A photo, or an input saved as .npy; may be repeated. Default: a bundled portrait."
        ),
    ] = None,
    samples: Annotated[int, inputs_option(help="Number of noise inputs.")] = 1,
    exact: Annotated[
        bool,
        comparison_option(
            "--exact", help="Also compare both PyTorch and the artifact with float64 (slow; needs 5 GB at full size)."
        ),
    ] = False,
    layers: Annotated[
        bool, comparison_option("--layers", help="Compare every layer on the worst input, to find the first wrong one.")
    ] = False,
    provider: RunProvider = Provider.CPU,
    save_worst: Annotated[
        Path | None, output_option(help="Save the worst input as .npy. Default: beside the model, if it fails.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare an artifact with the PyTorch network it was exported from.

    The inputs are a photo, noise, and hard cases such as zeros and sharp edges.

    Exit code 5: a bound is broken; the worst input is saved, to be replayed with --image.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, show_step
    from fcn_deploy.cli.render import print_verification

    options = fd.VerifyOptions(checkpoint, tuple(image or ()), samples, provider, exact, layers, save_worst)
    result = fd.verify(bundle, options, show_step)
    if json:
        print_json(result.to_dict())
    else:
        print_verification(result)
    result.require()
