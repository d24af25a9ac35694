"""`fcn-deploy export`."""

import sys
from pathlib import Path
from typing import Annotated

from fcn_deploy.choices import Calibration, Geometry, Head, ImageInput, Optimize, Precision, Variant
from fcn_deploy.cli.parameters import (
    Force,
    Json,
    RewriteTarget,
    graph_option,
    output_option,
    panel,
    parse_checkpoint,
    parse_size,
    precision_option,
)

network_option = panel("Network")
weights_option = panel("Weights")


def export(
    variant: Annotated[Variant, network_option(help="The FCN, by the stride of its last up-sampling.")],
    size: Annotated[str, network_option(help="Fixed input size in pixels: 500 or HxW.", metavar="PIXELS|HxW")] = "500",
    batch: Annotated[int, network_option(help="Images per run.")] = 1,
    num_classes: Annotated[
        int | None, network_option(help="Number of classes with background. Default: the checkpoint's, else 21.")
    ] = None,
    geometry: Annotated[
        Geometry | None,
        network_option(
            help="How pools round odd sizes; published weights need caffe. Default: the checkpoint's, else floor."
        ),
    ] = None,
    channel_divisor: Annotated[
        int | None, network_option(help="Divide all widths, for a quick stand-in. Default: the checkpoint's, else 1.")
    ] = None,
    checkpoint: Annotated[
        Path | None,
        weights_option(
            parser=parse_checkpoint,
            metavar="PATH",
            help="A .pth, .pt or .safetensors file, or 'sample' for a small bundled one. Default: random weights.",
        ),
    ] = None,
    at_once: Annotated[bool, weights_option("--at-once", help="The checkpoint is an fcn8s-atonce.")] = False,
    rng_seed: Annotated[int, weights_option(help="Seed of random weights.")] = 0,
    optimize: Annotated[
        Optimize, graph_option(help="How far to rewrite the graph. 'exact' removes work without changing the output.")
    ] = Optimize.EXACT,
    target: RewriteTarget = None,
    image_input: Annotated[
        ImageInput, graph_option(help="Input: float N x 3 x H x W, or uint8 RGB pixels N x H x W x 3.")
    ] = ImageInput.FLOAT,
    head: Annotated[Head, graph_option(help="Output: logits, or labels as one byte per pixel.")] = Head.LOGITS,
    opset: Annotated[
        int | None, graph_option(help="ONNX opset. Default: 18; 22 for bf16. CUDA lacks kernels for newer ones.")
    ] = None,
    precision: Annotated[Precision, precision_option(help="Arithmetic of the graph.")] = Precision.FP32,
    calibration: Annotated[
        list[Path] | None, precision_option(metavar="DIR", help="For int8: at least a dozen photos like those in use.")
    ] = None,
    calibration_method: Annotated[
        Calibration | None,
        precision_option(
            metavar="NAME", help="How activation ranges are calibrated: minmax, percentile or entropy. Default: minmax."
        ),
    ] = None,
    min_agreement: Annotated[
        float | None,
        precision_option(
            help="Smallest mean IU of int8 labels with float labels; layers stay in float until it is reached. "
            "Default: 0.95. Random weights are judged by their error."
        ),
    ] = None,
    output: Annotated[
        Path | None, output_option(help="Directory of the bundle. Default: fcn32s, fcn16s or fcn8s.")
    ] = None,
    force: Force = False,
    no_verify: Annotated[bool, output_option("--no-verify", help="Do not compare with PyTorch.")] = False,
    json: Json = False,
) -> None:
    """Export an FCN to ONNX, remove wasted work, check it against PyTorch, and write a bundle.

    The bounds of the check depend on the precision (docs/precision.md).

    Without a checkpoint the weights are random: reproducible, but the labels mean nothing.
    """
    height, width = parse_size(size)
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, show_step
    from fcn_deploy.cli.render import print_export

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
        print_export(result)
