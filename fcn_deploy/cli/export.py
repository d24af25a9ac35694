"""`fcn-deploy export`."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.choices import Calibration, Geometry, Head, ImageInput, Optimize, Precision, Variant
from fcn_deploy.cli.parameters import Json, RewriteTarget, parse_checkpoint, parse_size

if TYPE_CHECKING:
    from exporters.export import ExportResult

EPILOG = "Example: fcn-deploy export --variant 8s --checkpoint fcn8s.pth --output fcn8s"


def export(
    variant: Annotated[Variant, typer.Option(help="Which FCN, by the stride of its last up-sampling.")],
    checkpoint: Annotated[
        Path | None,
        typer.Option(
            parser=parse_checkpoint,
            metavar="PATH",
            help="Weights: .pth, .pt or .safetensors, or sample for a small network that comes along. "
            "Without it: random ones.",
            show_default=False,
        ),
    ] = None,
    geometry: Annotated[
        Geometry | None,
        typer.Option(
            help="How pools round odd sizes; caffe is that of the published weights. "
            "Default: the checkpoint family's own, floor without a checkpoint.",
            show_default=False,
        ),
    ] = None,
    num_classes: Annotated[
        int | None,
        typer.Option(
            help="Number of classes, background included. Default: the checkpoint's; 21 without.", show_default=False
        ),
    ] = None,
    size: Annotated[str, typer.Option(help="Fixed input size in pixels: 500 or HxW.", metavar="PIXELS|HxW")] = "500",
    batch: Annotated[int, typer.Option(help="Images per run.")] = 1,
    opset: Annotated[
        int | None,
        typer.Option(
            help="ONNX operator set; newer ones miss CUDA kernels. Default: 18, and 22 for bf16.", show_default=False
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option(help="The bundle's directory. Default: fcn32s, fcn16s or fcn8s.", show_default=False)
    ] = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace an existing bundle.")] = False,
    optimize: Annotated[
        Optimize, typer.Option(help="How far to rewrite the graph; exact removes work, never accuracy.")
    ] = Optimize.EXACT,
    target: RewriteTarget = None,
    head: Annotated[
        Head, typer.Option(help="What the graph gives: logits, or labels as one byte per pixel.")
    ] = Head.LOGITS,
    image_input: Annotated[
        ImageInput, typer.Option(help="What the graph takes: float, or uint8 for N x H x W x 3 RGB pixels.")
    ] = ImageInput.FLOAT,
    precision: Annotated[Precision, typer.Option(help="What the graph computes in.")] = Precision.FP32,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="DIR", help="Photos like those it is for, at least a dozen; int8 needs them.", show_default=False
        ),
    ] = None,
    calibration_method: Annotated[
        Calibration | None, typer.Option(help="How far int8's maps reach. Default: minmax.", show_default=False)
    ] = None,
    min_agreement: Annotated[
        float | None,
        typer.Option(
            help="Least mean IU of int8's labels with float's; layers stay in float until it is met. "
            "Default: 0.95; random weights are judged by their error.",
            show_default=False,
        ),
    ] = None,
    no_verify: Annotated[bool, typer.Option("--no-verify", metavar="", help="Do not compare with PyTorch.")] = False,
    at_once: Annotated[bool, typer.Option("--at-once", metavar="", help="The checkpoint is an fcn8s-atonce.")] = False,
    rng_seed: Annotated[int, typer.Option(help="Seed of random weights.")] = 0,
    channel_divisor: Annotated[
        int | None,
        typer.Option(
            help="Divide every width, for a quick stand-in of the real network. Default: the checkpoint's; 1 without.",
            show_default=False,
        ),
    ] = None,
    json: Json = False,
) -> None:
    """Build an FCN, export it to ONNX, rewrite it exactly, prove it equal to PyTorch, and write a bundle.

    The proof's bounds are those of the precision (docs/precision.md).

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
        onnx=fd.OnnxOptions(height, width, batch, opset or fd.default_opset(precision)),
        optimize=optimize,
        target=target,
        head=head,
        image_input=image_input,
        precision=fd.PrecisionOptions(precision, tuple(calibration or ()), calibration_method, min_agreement),
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
    from fcn_deploy.cli.render import print_parity, print_price, print_reduction, print_rewriting, print_simplification

    if result.simplification is not None:
        print_simplification(result.simplification)
    if result.rewriting is not None:
        print_rewriting(result.rewriting)
    if result.reduction is not None:
        print_reduction(result.reduction)
    if result.parity is None:
        print_line("[yellow]not verified[/]: nobody has compared this file with PyTorch")
    else:
        print_parity(result.parity)
    print_price(result)
    print_line(f"[bold]{result.info.network}[/], {result.info.provenance}")
    batch, channels, height, width = result.input_shape
    on_pixels = result.info.image_input is ImageInput.UINT8
    shape = f"{batch}x{height}x{width}x{channels}" if on_pixels else f"{batch}x{channels}x{height}x{width}"
    ends = f"{result.info.precision}, {result.info.image_input} input {shape}, {result.info.head}"
    print_line(f"wrote {escape(str(result.path))}: {ends}, {result.file_bytes / 1e6:.1f} MB")
