"""`fcn-deploy tensorrt`."""

from pathlib import Path
from typing import Annotated

from fcn_deploy.choices import FlavourName, Precision
from fcn_deploy.cli.parameters import (
    BundlePath,
    Force,
    Json,
    output_option,
    panel,
    parse_capabilities,
    precision_option,
)

build_option = panel("Build")


def tensorrt(
    bundle: BundlePath,
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
    import fcn_deploy as fd
    from fcn_deploy.cli.console import PhaseBars, print_json, show_step
    from fcn_deploy.cli.render import print_engine_build

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
    bars = PhaseBars()
    with bars.progress:
        result = fd.build_engine(options, show_step, bars)
    if json:
        print_json(result.to_dict())
    else:
        print_engine_build(result)
