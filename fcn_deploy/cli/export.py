"""`fcn-deploy export`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from exporters.optimize import Optimize
from fcn_deploy.cli.parameters import Json, parse_size
from fcn_deploy.geometry import Geometry, Variant

if TYPE_CHECKING:
    from exporters.pipeline import ExportResult
    from exporters.simplify import Simplification

EPILOG = "Example: fcn-deploy export --variant 8s --checkpoint fcn8s.pth --output fcn8s"


def export(
    variant: Annotated[Variant, typer.Option(help="Which FCN, by the stride of its last up-sampling.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(help="Weights: .pth, .pt or .safetensors. Without it: random ones.", show_default=False),
    ] = None,
    geometry: Annotated[
        Geometry | None,
        typer.Option(
            help="How pools round odd sizes; caffe is that of the published weights. "
            "Default: the checkpoint family's own, floor without a checkpoint.",
            show_default=False,
        ),
    ] = None,
    num_classes: Annotated[int, typer.Option(help="Number of classes, background included.")] = 21,
    size: Annotated[str, typer.Option(help="Fixed input size in pixels: 500 or HxW.", metavar="PIXELS|HxW")] = "500",
    batch: Annotated[int, typer.Option(help="Images per run.")] = 1,
    opset: Annotated[int, typer.Option(help="ONNX operator set; newer ones miss CUDA kernels.")] = 18,
    output: Annotated[
        Path | None, typer.Option(help="The bundle's directory. Default: fcn32s, fcn16s or fcn8s.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace an existing bundle.")] = False,
    optimize: Annotated[Optimize, typer.Option(help="How far to rewrite the graph.")] = Optimize.SIMPLIFY,
    no_verify: Annotated[bool, typer.Option("--no-verify", metavar="", help="Do not compare with PyTorch.")] = False,
    at_once: Annotated[bool, typer.Option("--at-once", metavar="", help="The checkpoint is an fcn8s-atonce.")] = False,
    rng_seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    channel_divisor: Annotated[
        int, typer.Option(help="Divide every width, for a quick stand-in of the real network.")
    ] = 1,
    json: Json = False,
) -> None:
    """Build an FCN, export it to ONNX, simplify it, prove it equal to PyTorch, and write a bundle.

    Random weights are reproducible but untrained: their labels mean nothing.
    """
    height, width = parse_size(size)
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, show_step

    options = fd.ExportOptions(
        variant=variant,
        output=output or Path(f"fcn{variant}"),
        geometry=geometry,
        num_classes=num_classes,
        channel_divisor=channel_divisor,
        weights=fd.WeightsOptions(checkpoint, rng_seed, at_once),
        onnx=fd.OnnxOptions(height, width, batch, opset),
        optimize=optimize,
        verify=not no_verify,
        force=force,
        command=("fcn-deploy", *sys.argv[1:]),
    )
    result = fd.export(options, show_step)
    if json:
        print_json(result.to_dict())
    else:
        _show(result)


def _show(result: "ExportResult") -> None:
    from rich.markup import escape

    from fcn_deploy.cli.console import print_line
    from fcn_deploy.cli.parity_table import print_parity

    if result.simplification is not None:
        print_line(_described(result.simplification))
    if result.parity is None:
        print_line("[yellow]not verified[/]: nobody has compared this file with PyTorch")
    else:
        print_parity(result.parity)
    print_line(f"[bold]{result.info.network}[/], {result.info.provenance}")
    shape = "x".join(str(n) for n in result.input_shape)
    print_line(f"wrote {escape(str(result.path))}: input {shape}, {result.file_bytes / 1e6:.1f} MB")


def _described(simplification: "Simplification") -> str:
    from rich.markup import escape

    s = simplification
    if s.refused is not None:
        return f"[yellow]kept the graph as exported[/], {s.nodes_before} nodes: {escape(s.refused)}"
    operators = {*s.before, *s.after}
    changes = [f"{op} {s.before.get(op, 0)} -> {s.after.get(op, 0)}" for op in sorted(operators)]
    changed = ", ".join(c for c in changes if c.split()[1] != c.split()[3]) or "nothing to do"
    proof = "equal by structure"
    if s.difference is not None:
        proof = f"nodes that differ in structure: {s.compared_nodes}, in value: by {s.difference:.1e} of the range"
    return f"simplified {s.nodes_before} -> {s.nodes_after} nodes ({changed}); {proof}"
