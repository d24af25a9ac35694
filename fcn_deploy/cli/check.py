"""The commands that check artifacts and the machine: `fcn-deploy verify`, `evaluate`, `inspect` and `doctor`."""

from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

import fcn_deploy as fd
from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import (
    SAMPLE,
    ArtifactPath,
    Json,
    KeepAspect,
    ModuleChanged,
    NoCache,
    RunProvider,
    SourceCheckpoint,
    SourceModule,
    output_option,
    panel,
)

inputs_option, comparison_option, data_option = panel("Inputs"), panel("Comparison"), panel("Data set")


def verify(
    bundle: ArtifactPath,
    checkpoint: SourceCheckpoint = None,
    module: SourceModule = None,
    module_changed: ModuleChanged = False,
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
    no_cache: NoCache = False,
    save_worst: Annotated[
        Path | None, output_option(help="Save the worst input as .npy. Default: beside the model, if it fails.")
    ] = None,
    json: Json = False,
) -> None:
    """Compare an artifact with the PyTorch network it was exported from.

    The inputs are a photo, noise, and hard cases such as zeros and sharp edges.

    Exit code 5: a bound is broken; the worst input is saved, to be replayed with --image.
    """
    from fcn_deploy.cli import console, render

    options = fd.VerifyOptions(
        checkpoint,
        tuple(image or ()),
        samples,
        provider,
        exact,
        layers,
        save_worst,
        use_cache=not no_cache,
        module=module,
        module_changed=module_changed,
    )
    result = fd.verify(bundle, options, console.show_step)
    console.print_result(result, render.print_verification, as_json=json)
    result.require()


def evaluate(
    bundle: ArtifactPath,
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="A folder in Pascal VOC's layout, or with images/ and labels/; or 'sample' for the bundled scene.",
            show_default=False,
        ),
    ],
    against: Annotated[
        Literal["pytorch"] | None, typer.Option(help="Also score PyTorch on the same photos.", show_default=False)
    ] = None,
    checkpoint: SourceCheckpoint = None,
    module: SourceModule = None,
    module_changed: ModuleChanged = False,
    split: Annotated[
        str | None, data_option(help="Pascal VOC only: a list in ImageSets/Segmentation. Default: val.", metavar="NAME")
    ] = None,
    images: Annotated[
        str | None, data_option(help="Folder of photos within DATASET. Default: images.", metavar="FOLDER")
    ] = None,
    labels: Annotated[
        str | None, data_option(help="Folder of label PNGs within DATASET. Default: labels.", metavar="FOLDER")
    ] = None,
    limit: Annotated[int | None, data_option(help="Score only the first N images.")] = None,
    keep_aspect: KeepAspect = False,
    provider: RunProvider = Provider.CPU,
    no_cache: NoCache = False,
    output: Annotated[Path, output_option(help="Directory of the results.")] = Path("evaluation"),
    worst: Annotated[int, output_option(help="Number of worst images on the page.")] = 8,
    page: Annotated[bool, output_option("--page/--no-page", help="Write an HTML page.")] = True,
    json: Json = False,
) -> None:
    """Score an artifact on a labelled data set: accuracy and IU, per class and overall.

    Run it again after an interruption: finished images are skipped.

    Exit code 3: an image has no score; the others are scored.
    """
    from fcn_deploy.cli import console, render

    options = fd.EvaluateOptions(
        output,
        keep_aspect,
        provider,
        against,
        checkpoint,
        worst,
        limit,
        page,
        use_cache=not no_cache,
        module=module,
        module_changed=module_changed,
    )
    result = fd.evaluate(bundle, _dataset(dataset, split, images, labels), options, console.show_step)
    console.print_result(result, partial(render.print_evaluation, output=output), as_json=json)
    result.require()


def _dataset(named: str, split: str | None, images: str | None, labels: str | None) -> "fd.Dataset":
    if named != SAMPLE:
        return fd.find_dataset(Path(named), split, images, labels)
    if (split, images, labels) != (None, None, None):
        raise fd.UsageError(
            "the sample is a single scene, without splits or folders",
            remedy="Omit --split, --images and --labels. To score a folder named sample, pass ./sample.",
        )
    return fd.sample_dataset()


def inspect(
    bundle: ArtifactPath,
    picture: Annotated[
        Path | None, output_option(help="Draw which part of every feature map depends on the image, to a .png or .svg.")
    ] = None,
    json: Json = False,
) -> None:
    """Show layers, map sizes, parameters, multiply-adds, metadata and warnings of an artifact."""
    from fcn_deploy.artifact import is_engine
    from fcn_deploy.cli import console, render

    if is_engine(bundle):
        if picture is not None:
            raise fd.UsageError(
                f"{bundle} is an engine, which has no feature maps to draw", remedy="Pass the bundle it was built from."
            )
        console.print_result(fd.open_engine(bundle), render.print_inspected_engine, as_json=json)
        return
    inspection = fd.inspect(bundle)
    drawn = fd.draw_regions(bundle, picture) if picture is not None else None
    console.print_result(inspection, render.print_inspection, as_json=json)
    if drawn is not None and not json:
        console.print_line(f"wrote {drawn}")


def doctor(json: Json = False) -> None:
    """Check versions, providers, NVIDIA libraries, memory and disk; say how to fix each problem.

    Exit code 4: no model can run here.
    """
    from fcn_deploy.cli import console, render

    findings = fd.examine()
    if json:
        console.print_json([asdict(finding) for finding in findings])
    else:
        render.print_findings(findings)
    if any(finding.status == "problem" for finding in findings):
        raise typer.Exit(fd.ProviderError.exit_code)
