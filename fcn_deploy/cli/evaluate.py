"""`fcn-deploy evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import (
    SAMPLE,
    ArtifactPath,
    Json,
    KeepAspect,
    RunProvider,
    SourceCheckpoint,
    output_option,
    panel,
)

if TYPE_CHECKING:
    from fcn_deploy.evaluation.data import Dataset

data_option = panel("Data set")


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
    output: Annotated[Path, output_option(help="Directory of the results.")] = Path("evaluation"),
    worst: Annotated[int, output_option(help="Number of worst images on the page.")] = 8,
    page: Annotated[bool, output_option("--page/--no-page", help="Write an HTML page.")] = True,
    json: Json = False,
) -> None:
    """Score an artifact on a labelled data set: accuracy and IU, per class and overall.

    Run it again after an interruption: finished images are skipped.

    Exit code 3: an image has no score; the others are scored.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, show_step
    from fcn_deploy.cli.render import print_evaluation

    options = fd.EvaluateOptions(output, keep_aspect, provider, against, checkpoint, worst, limit, page)
    result = fd.evaluate(bundle, _dataset(dataset, split, images, labels), options, show_step)
    if json:
        print_json(result.to_dict())
    else:
        print_evaluation(result, output)
    result.require()


def _dataset(named: str, split: str | None, images: str | None, labels: str | None) -> "Dataset":
    import fcn_deploy as fd

    if named != SAMPLE:
        return fd.find_dataset(Path(named), split, images, labels)
    if (split, images, labels) != (None, None, None):
        raise fd.UsageError(
            "the sample is a single scene, without splits or folders",
            remedy="Omit --split, --images and --labels. To score a folder named sample, pass ./sample.",
        )
    return fd.sample_dataset()
