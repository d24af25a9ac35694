"""`fcn-deploy evaluate`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import SAMPLE, ArtifactPath, Json, MadeFrom

if TYPE_CHECKING:
    from fcn_deploy.evaluation.data import Dataset

EPILOG = "Example: fcn-deploy evaluate fcn8s VOCdevkit/VOC2012 --against pytorch"


def evaluate(
    bundle: ArtifactPath,
    dataset: Annotated[
        str,
        typer.Argument(
            metavar="DATASET",
            help="A folder in Pascal VOC's layout, or one that holds images/ and labels/; or sample.",
            show_default=False,
        ),
    ],
    split: Annotated[
        str | None,
        typer.Option(
            help="Of Pascal VOC: a list in ImageSets/Segmentation. Default: val.", metavar="NAME", show_default=False
        ),
    ] = None,
    images: Annotated[
        str | None,
        typer.Option(help="The folder of photos, from DATASET. Default: images.", metavar="FOLDER", show_default=False),
    ] = None,
    labels: Annotated[
        str | None,
        typer.Option(
            help="The folder of label PNGs, from DATASET. Default: labels.", metavar="FOLDER", show_default=False
        ),
    ] = None,
    against: Annotated[
        Literal["pytorch"] | None, typer.Option(help="Also label the photos with PyTorch.", show_default=False)
    ] = None,
    checkpoint: MadeFrom = None,
    keep_aspect: Annotated[
        bool,
        typer.Option("--keep-aspect", metavar="", help="Pad photos to the input's shape instead of stretching them."),
    ] = False,
    provider: Annotated[Provider, typer.Option(help="Where ONNX Runtime runs the artifact.")] = Provider.CPU,
    limit: Annotated[int | None, typer.Option(help="Score only the first so many images.", show_default=False)] = None,
    output: Annotated[Path, typer.Option(help="Directory of the results.")] = Path("evaluation"),
    worst: Annotated[int, typer.Option(help="How many of the worst images the page shows.")] = 8,
    page: Annotated[bool, typer.Option("--page/--no-page", help="Write the page.")] = True,
    json: Json = False,
) -> None:
    """Score an artifact on a data set with true labels: accuracy and IU, per class and overall.

    Run it again after an interruption: what is finished is not done twice.

    Exit code 3 when an image has no score; the others are scored all the same.
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
            "the sample is one scene, without splits and folders",
            remedy="Leave --split, --images and --labels out. A folder of that name is ./sample.",
        )
    return fd.sample_dataset()
