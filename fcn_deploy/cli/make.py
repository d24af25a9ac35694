"""The commands that make artifacts: `fcn-deploy export`, `optimize`, `tensorrt` and `package`."""

import sys
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

import fcn_deploy as fd
from exporters.triton.options import STORAGE_PLACEHOLDER
from fcn_deploy.choices import (
    Calibration,
    ChannelOrder,
    FlavourName,
    Geometry,
    Head,
    ImageInput,
    Optimize,
    Precision,
    Preset,
    Provider,
    Target,
    TritonBackend,
    UpsampleMode,
    Variant,
)
from fcn_deploy.cli.parameters import (
    ArtifactPath,
    Force,
    Json,
    output_option,
    panel,
    parse_capabilities,
    parse_checkpoint,
    parse_module,
    parse_preprocessing,
    parse_size,
)

network_option, weights_option, graph_option = panel("Network"), panel("Weights"), panel("Graph")
picture_option, label_option = panel("Pre-processing"), panel("Labels")
precision_option, build_option = panel("Precision"), panel("Build")
model_option, triton_option = panel("Model"), panel("Triton")

RewriteTarget = Annotated[
    Target | None,
    graph_option(help="Device to choose the rewrites for. Default: cuda with an NVIDIA driver, else cpu."),
]


def export(
    variant: Annotated[
        Variant | None, network_option(help="The FCN, by the stride of its last up-sampling.", show_default=False)
    ] = None,
    module: Annotated[
        str | None,
        network_option(
            metavar="SOURCE", help="Your own network instead: net.py:Net or package.module:Net. Its code is run."
        ),
    ] = None,
    module_args: Annotated[
        str, network_option(metavar="JSON", help="Keyword arguments of the module, such as '{\"num_classes\": 5}'.")
    ] = "{}",
    output_key: Annotated[
        str | None, network_option(help="Key of the logits where the module returns a dictionary. Default: out.")
    ] = None,
    upsample: Annotated[
        UpsampleMode, network_option(help="How a module's smaller logits are brought to the size of the image.")
    ] = UpsampleMode.NONE,
    align_corners: Annotated[
        bool, network_option("--align-corners", help="Align the corners in bilinear up-sampling.")
    ] = False,
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
    preprocessing: Annotated[
        Preset | None,
        picture_option(help="How pixels become the input; a module needs it. Default for FCNs: caffe."),
    ] = None,
    channel_order: Annotated[
        ChannelOrder | None,
        picture_option(help="Order of the network's channels; turns the preset's mean and std, too."),
    ] = None,
    scale: Annotated[
        float | None, picture_option(help="Factor of the pixels, which are 0..255. Default: the preset's.")
    ] = None,
    mean: Annotated[
        str | None,
        picture_option(metavar="A,B,C", help="Is subtracted from the scaled channels, in their order."),
    ] = None,
    std: Annotated[str | None, picture_option(metavar="A,B,C", help="Divides what is left.")] = None,
    class_names: Annotated[
        Path | None, label_option(metavar="FILE", help="Names of the labels, one per line. Default: the checkpoint's.")
    ] = None,
    palette: Annotated[
        Path | None, label_option(metavar="FILE", help="Colours of the labels, one per line: #1f77b4. Default: VOC's.")
    ] = None,
    threshold: Annotated[
        float | None, label_option(help="For one class: probability above which a pixel is labelled 1. Default: 0.5.")
    ] = None,
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
        Path | None,
        output_option(help="Directory of the bundle. Default: fcn32s, ..., or the module's name."),
    ] = None,
    force: Force = False,
    no_verify: Annotated[bool, output_option("--no-verify", help="Do not compare with PyTorch.")] = False,
    json: Json = False,
) -> None:
    """Export an FCN, or your own network, to ONNX, remove wasted work, check it against PyTorch, and write a bundle.

    The bounds of the check depend on the precision (docs/precision.md).

    Without a checkpoint the weights are random: reproducible, but the labels mean nothing.
    """
    height, width = parse_size(size)
    from fcn_deploy.cli import console, render

    chosen = parse_module(module, module_args, output_key, upsample, align_corners=align_corners)
    options = fd.ExportOptions(
        variant=variant,
        module=chosen,
        output=output or Path(f"fcn{variant}" if chosen is None else chosen.name.lower()),
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
        preprocessing=parse_preprocessing(preprocessing, channel_order, scale, mean, std, is_fcn=chosen is None),
        labels=fd.LabelOptions(class_names, palette, threshold),
        verify=not no_verify,
        force=force,
        command=("fcn-deploy", *sys.argv[1:]),
    )
    result = fd.export(options, console.show_step)
    console.print_result(result, render.print_export, as_json=json)


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
    from fcn_deploy.cli import console, render

    result = fd.optimize(model, output, target, force=force, on_step=console.show_step)
    console.print_result(result, render.print_optimized, as_json=json)


def tensorrt(
    bundle: Annotated[
        Path, typer.Argument(metavar="BUNDLE", help="A bundle's directory, or an ONNX file.", show_default=False)
    ],
    precision: Annotated[
        Precision | None, precision_option(help="Arithmetic of the engine. Default: the bundle's.")
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        precision_option(
            metavar="PATH",
            help="A photo, or a folder of photos, to convert a float32 bundle with; may be repeated. "
            "Default: a bundled portrait.",
        ),
    ] = None,
    flavour: Annotated[
        FlavourName | None, build_option(help="Which TensorRT to build with. Default: the one that is installed.")
    ] = None,
    compute_capability: Annotated[
        str, build_option(metavar="8.9,12.0", help="GPUs to build for (TensorRT-RTX only). Default: this machine's.")
    ] = "",
    workspace: Annotated[int | None, build_option(metavar="MB", help="Limit of scratch memory in MiB.")] = None,
    timing_cache: Annotated[
        Path | None, build_option(help="File that keeps measured kernel times (TensorRT only).")
    ] = None,
    output: Annotated[Path | None, output_option(help="The engine file. Default: BUNDLE.plan.")] = None,
    force: Force = False,
    json: Json = False,
) -> None:
    """Build a TensorRT engine from a bundle: a plan, and a JSON file that describes it.

    TensorRT-RTX builds on any machine for named GPUs; TensorRT builds for the GPU of this machine.
    """
    from fcn_deploy.cli import console, render

    options = fd.EngineOptions(
        source=bundle,
        output=output,
        precision=precision,
        calibration=tuple(calibration or ()),
        flavour=flavour,
        capabilities=parse_capabilities(compute_capability),
        workspace_mb=workspace,
        timing_cache=timing_cache,
        force=force,
    )
    bars = console.PhaseBars()
    with bars.progress:
        result = fd.build_engine(options, console.show_step, bars)
    console.print_result(result, render.print_engine_build, as_json=json)


def package(
    bundle: ArtifactPath,
    target: Annotated[Literal["triton"], model_option(help="The server to package for.")] = "triton",  # noqa: ARG001
    backend: Annotated[
        TritonBackend, model_option(help="Triton backend that runs the model; tensorrt needs an engine.")
    ] = TritonBackend.ONNXRUNTIME,
    name: Annotated[str | None, model_option(help="Name of the model. Default: the bundle's name.")] = None,
    instances: Annotated[int, triton_option(help="Model instances that run in parallel.")] = 1,
    queue_delay: Annotated[
        int | None,
        triton_option(
            metavar="US", help="Longest wait for further requests to fill a batch, in microseconds. Default: 1000."
        ),
    ] = None,
    provider: Annotated[Provider | None, triton_option(help="Where ONNX Runtime runs in Triton. Default: cpu.")] = None,
    workspace: Annotated[
        int | None, triton_option(metavar="MB", help="Provider tensorrt: limit of scratch memory in MiB.")
    ] = None,
    engine_cache: Annotated[
        str | None,
        triton_option(metavar="PATH", help="Provider tensorrt: folder on the server that keeps built engines."),
    ] = None,
    output: Annotated[Path, output_option(help="Directory of the package.")] = Path("triton"),
    storage_uri: Annotated[
        str, output_option(metavar="URI", help="Where Kubernetes fetches the repository from.")
    ] = STORAGE_PLACEHOLDER,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a Triton model repository, with a client and a KServe manifest.

    Clients send photos as uint8 RGB and receive label maps.
    """
    from fcn_deploy.cli import console, render

    options = fd.PackageOptions(
        source=bundle,
        output=output,
        backend=backend,
        name=name,
        provider=provider,
        instances=instances,
        queue_delay_us=queue_delay,
        workspace_mb=workspace,
        engine_cache=engine_cache,
        storage_uri=storage_uri,
        force=force,
    )
    result = fd.package(options, console.show_step)
    show = partial(render.print_package, placeholder=storage_uri == STORAGE_PLACEHOLDER)
    console.print_result(result, show, as_json=json)
