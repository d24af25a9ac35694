"""`fcn-deploy optimize`."""

from pathlib import Path
from typing import Annotated

import typer

from fcn_deploy.cli.parameters import Json, RewriteTarget

EPILOG = "Example: fcn-deploy optimize fcn8s.onnx fcn8s-fast.onnx"


def optimize(
    model: Annotated[Path, typer.Argument(metavar="MODEL.onnx", help="Any ONNX file of fixed shapes.")],
    output: Annotated[Path, typer.Argument(metavar="OUT.onnx", help="The file to write.")],
    target: RewriteTarget = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace an existing file.")] = False,
    json: Json = False,
) -> None:
    """Rewrite an ONNX file so that it computes the same with less work, whoever exported it.

    Every rewrite is compared with the graph before it, and undone if it differs.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, print_line, show_step

    result = fd.optimize(model, output, target, force=force, on_step=show_step)
    if json:
        print_json(result.to_dict())
        return
    from rich.markup import escape

    from fcn_deploy.cli.render import print_rewriting, print_simplification

    print_simplification(result.simplification)
    print_rewriting(result.rewriting)
    size = f"{result.file_bytes / 1e6:.1f} MB, {result.grown_bytes / 1e6:+.1f} MB"
    print_line(f"wrote {escape(str(result.path))}: {size}")
