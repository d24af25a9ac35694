"""The commands that use artifacts: `fcn-deploy predict`, `serve` and `cache`."""

from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

import fcn_deploy as fd
from fcn_deploy.choices import MAX_MEGAPIXELS, CacheAction, EngineName, OutputFormat, Provider
from fcn_deploy.cli.parameters import (
    ArtifactPath,
    Json,
    KeepAspect,
    NoCache,
    RunProvider,
    inference_option,
    output_option,
    panel,
)

address_option, limits_option = panel("Address"), panel("Limits")
_SIGNAL_CODES = 128


def predict(
    bundle: ArtifactPath,
    images: Annotated[
        list[str],
        typer.Argument(
            metavar="IMAGE",
            help="Photos, directories (without subdirectories), or patterns such as 'photos/**/*.jpg'.",
        ),
    ],
    keep_aspect: KeepAspect = False,
    provider: RunProvider = Provider.CPU,
    engine: Annotated[
        EngineName, inference_option(help="Threads of this process, or a Ray cluster.")
    ] = EngineName.LOCAL,
    address: Annotated[
        str | None, inference_option(help="Address of the Ray cluster (HOST:PORT or auto). Default: start one here.")
    ] = None,
    output: Annotated[str, output_option(metavar="DIR|URL", help="Where to write the results.")] = "predictions",
    max_photo_mpx: Annotated[
        int, inference_option(help="Largest photo in millions of pixels, 1 to 178; larger ones fail.")
    ] = MAX_MEGAPIXELS,
    no_cache: NoCache = False,
    output_format: Annotated[OutputFormat, output_option(help="What to write for each photo.")] = OutputFormat.PNG,
    force: Annotated[bool, output_option("--force", help="Also replace files that predict did not write.")] = False,
    json: Json = False,
) -> None:
    """Segment photos of any size: for each a palette PNG of labels and an overlay with a legend.

    Photos that already have results are skipped, so an interrupted run can be repeated.

    Exit code 3: a photo cannot be read, is too large, or the name of its result is taken. It is listed in
    failures.jsonl; the others are segmented.
    """
    from fcn_deploy.cli import console, render

    paths = fd.find_images(images)
    options = fd.PredictOptions(
        output, keep_aspect, provider, output_format, engine, address, max_photo_mpx, force=force,
        use_cache=not no_cache,
    )  # fmt: skip
    summary = fd.PredictionSummary()
    found = []
    for prediction in console.counted(fd.predict(bundle, paths, options), summary, len(paths)):
        if json:
            found.append(prediction.to_dict())
        else:
            render.print_prediction(prediction)
    if json:
        console.print_json(found)
    console.print_line(str(summary), to_stderr=True)
    if summary.untrained:
        console.print_untrained()
    if summary.failed:
        raise typer.Exit(fd.ImageError.exit_code)


def serve(
    bundle: ArtifactPath,
    host: Annotated[str, address_option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    http_port: Annotated[int, address_option(help="HTTP port; 0 takes any free one.")] = 8000,
    grpc_port: Annotated[int, address_option(help="gRPC port; 0 takes any free one.")] = 8001,
    name: Annotated[str | None, address_option(help="Name of the model. Default: the bundle's name.")] = None,
    provider: RunProvider = Provider.CPU,
    keep_aspect: KeepAspect = False,
    no_cache: NoCache = False,
    queue_size: Annotated[int, limits_option(help="Requests that may wait; further ones are refused with 503.")] = 32,
    max_photo_mb: Annotated[int, limits_option(help="Largest photo file in MB.")] = 32,
    max_photo_mpx: Annotated[int, limits_option(help="Largest photo in millions of pixels, 1 to 178.")] = 25,
    allow_host: Annotated[
        list[str] | None,
        limits_option(
            help="A further name that clients may use for the server; repeatable. 127.0.0.1 takes only its own."
        ),
    ] = None,
    client_timeout: Annotated[float, limits_option(help="Seconds a client may take to send a request.")] = 30.0,
    drain: Annotated[float, limits_option(help="Seconds to finish accepted requests after Ctrl-C or SIGTERM.")] = 30.0,
    json: Annotated[bool, output_option("--json", help="Print the addresses as one JSON document.")] = False,
) -> None:
    """Serve the Open Inference Protocol over HTTP and gRPC, and a web page for photos.

    Ctrl-C or SIGTERM stops the server once accepted requests are answered; a second one stops it at once.

    Exit code 0: every accepted request was answered.
    130 or 143: a request was cut off.
    """
    from fcn_deploy.cli import console, render

    options = fd.ServeOptions(
        host, http_port, grpc_port, name, provider, keep_aspect, queue_size, max_photo_mb, max_photo_mpx,
        tuple(allow_host or ()), client_timeout, drain, use_cache=not no_cache,
    )  # fmt: skip
    served = fd.serve(bundle, options, partial(console.print_result, show=render.print_endpoint, as_json=json))
    console.print_line(f"stopped; {served.answered} requests answered, {served.cut_off} cut off", to_stderr=True)
    if served.cut_off and served.signal is not None:
        raise typer.Exit(_SIGNAL_CODES + served.signal)


def cache(
    action: Annotated[
        CacheAction, typer.Argument(help="List the prepared sessions, print their folder, or remove them.")
    ] = CacheAction.LIST,
    json: Json = False,
) -> None:
    """Show or clear the prepared sessions of large models, which `predict`, `serve`, `evaluate` and `verify` write.

    A model's first run on a CPU writes one; the runs after it open within milliseconds. FCN_DEPLOY_CACHE names another
    folder for them.
    """
    from rich.markup import escape

    from fcn_deploy.cli import console, render

    found = fd.default_cache()
    freed = found.clear() if action is CacheAction.CLEAR else None
    if json:
        entries = [asdict(entry) for entry in found.entries()]
        console.print_json({"folder": str(found.folder), "entries": entries, "freed_bytes": freed or 0})
    elif action is CacheAction.WHERE:
        console.print_line(escape(str(found.folder)))
    else:
        render.print_cache(found, freed)
