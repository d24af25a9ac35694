"""`fcn-deploy serve`."""

from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import ArtifactPath, Json

if TYPE_CHECKING:
    from fcn_deploy.serving.server import Endpoint

EPILOG = "Example: fcn-deploy serve fcn8s --http-port 8000"
_SIGNAL_CODES = 128


def serve(
    bundle: ArtifactPath,
    host: Annotated[
        str, typer.Option(help="Address to listen on; 0.0.0.0 lets in everyone who reaches this machine.")
    ] = "127.0.0.1",
    http_port: Annotated[int, typer.Option(help="Port of HTTP; 0 takes any that is free.")] = 8000,
    grpc_port: Annotated[int, typer.Option(help="Port of gRPC; 0 takes any that is free.")] = 8001,
    name: Annotated[
        str | None, typer.Option(help="Name of the model. Default: the bundle's.", show_default=False)
    ] = None,
    provider: Annotated[Provider, typer.Option(help="Where ONNX Runtime runs.")] = Provider.CPU,
    keep_aspect: Annotated[
        bool,
        typer.Option("--keep-aspect", metavar="", help="Pad photos to the input's shape instead of stretching them."),
    ] = False,
    queue_size: Annotated[int, typer.Option(help="Requests that may wait; one more is refused with 503.")] = 32,
    max_photo_mb: Annotated[int, typer.Option(help="Largest file of a photo, MB.")] = 32,
    client_timeout: Annotated[float, typer.Option(help="Seconds a client may take to send a request.")] = 30.0,
    drain: Annotated[float, typer.Option(help="Seconds accepted requests may take after Ctrl-C or SIGTERM.")] = 30.0,
    json: Json = False,
) -> None:
    """Answer requests over the Open Inference Protocol (HTTP and gRPC), and show a page to drop photos on.

    Ctrl-C or SIGTERM stops it after what was accepted has been answered; a second one cuts that short.

    Exit code 0: everything accepted was answered.
    130 or 143: something was cut off.
    """
    import fcn_deploy as fd

    options = fd.ServeOptions(
        host, http_port, grpc_port, name, provider, keep_aspect, queue_size, max_photo_mb, client_timeout, drain
    )
    _show_failures()
    served = fd.serve(bundle, options, _print_document if json else _show)
    _leave(served.answered, served.cut_off, served.signal)


def _leave(answered: int, cut_off: int, signal: int | None) -> None:
    from fcn_deploy.cli.console import print_line

    print_line(f"stopped; {answered} requests answered, {cut_off} cut off", to_stderr=True)
    if cut_off and signal is not None:
        raise typer.Exit(_SIGNAL_CODES + signal)


def _print_document(listening: "Endpoint") -> None:
    import sys

    from fcn_deploy.cli.console import print_json

    print_json(listening.to_dict())
    sys.stdout.flush()


def _show(listening: "Endpoint") -> None:
    from rich.markup import escape

    from fcn_deploy.cli.console import print_line

    pixels, labels = (
        f"{tensor['name']} {tensor['datatype']} {tensor['shape']}" for tensor in (*listening.inputs, *listening.outputs)
    )
    at_most = f", at most {listening.max_batch} at once" if listening.max_batch > 1 else ""
    for title, text in (
        ("model", f"{listening.name}: {listening.description}"),
        ("runtime", listening.runtime),
        ("page", f"{listening.http_url}/"),
        ("HTTP", f"{listening.http_url}/v2/models/{listening.name}/infer"),
        ("gRPC", listening.grpc_url),
        ("metrics", f"{listening.http_url}/metrics"),
        ("input", f"{pixels}, RGB{at_most}"),
        ("output", labels),
        ("try", f"curl --data-binary @photo.jpg {listening.http_url}/segment"),
    ):
        print_line(f"[dim]{title:8}[/]{escape(text)}")
    if listening.untrained:
        print_line("untrained weights: the labels mean nothing", to_stderr=True)
    print_line("Ctrl-C stops it", to_stderr=True)


def _show_failures() -> None:
    """One line on stderr for every request the server itself failed at."""
    import logging

    from rich.markup import escape

    from fcn_deploy.cli.console import print_line

    class OnTerminal(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            print_line(f"[bold red]failed:[/] {escape(record.getMessage())}", to_stderr=True)

    logging.getLogger("fcn_deploy.serving").addHandler(OnTerminal())
