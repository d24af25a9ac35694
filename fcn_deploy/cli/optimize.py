"""`fcn-deploy optimize`."""

from pathlib import Path
from typing import Annotated

import typer

from fcn_deploy.cli.parameters import Force, Json, RewriteTarget


def optimize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="An ONNX file with fixed shapes.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    target: RewriteTarget = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Rewrite any exporter's ONNX file so that it computes the same with less work.

    Each rewrite is compared with the graph before it, and undone if the output changes.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, show_step
    from fcn_deploy.cli.render import print_optimized

    result = fd.optimize(model, output, target, force=force, on_step=show_step)
    if json:
        print_json(result.to_dict())
    else:
        print_optimized(result)
