"""`fcn-deploy serve`."""

import logging
import sys
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.choices import Provider
from fcn_deploy.cli.parameters import ArtifactPath, KeepAspect, RunProvider, output_option, panel

if TYPE_CHECKING:
    from fcn_deploy.serving.server import Endpoint

address_option = panel("Address")
limits_option = panel("Limits")
_SIGNAL_CODES = 128


def serve(
    bundle: ArtifactPath,
    host: Annotated[str, address_option(help="Address to listen on; 0.0.0.0 accepts other machines.")] = "127.0.0.1",
    http_port: Annotated[int, address_option(help="HTTP port; 0 takes any free one.")] = 8000,
    grpc_port: Annotated[int, address_option(help="gRPC port; 0 takes any free one.")] = 8001,
    name: Annotated[str | None, address_option(help="Name of the model. Default: the bundle's name.")] = None,
    provider: RunProvider = Provider.CPU,
    keep_aspect: KeepAspect = False,
    queue_size: Annotated[int, limits_option(help="Requests that may wait; further ones are refused with 503.")] = 32,
    max_photo_mb: Annotated[int, limits_option(help="Largest photo file in MB.")] = 32,
    client_timeout: Annotated[float, limits_option(help="Seconds a client may take to send a request.")] = 30.0,
    drain: Annotated[float, limits_option(help="Seconds to finish accepted requests after Ctrl-C or SIGTERM.")] = 30.0,
    json: Annotated[bool, output_option("--json", help="Print the addresses as one JSON document.")] = False,
) -> None:
    """Serve the Open Inference Protocol over HTTP and gRPC, and a web page for photos.

    Ctrl-C or SIGTERM stops the server once accepted requests are answered; a second one stops it at once.

    Exit code 0: every accepted request was answered.
    130 or 143: a request was cut off.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_line
    from fcn_deploy.cli.render import print_endpoint

    options = fd.ServeOptions(
        host, http_port, grpc_port, name, provider, keep_aspect, queue_size, max_photo_mb, client_timeout, drain
    )
    logging.getLogger("fcn_deploy.serving").addHandler(_FailureLines())
    served = fd.serve(bundle, options, _print_document if json else print_endpoint)
    print_line(f"stopped; {served.answered} requests answered, {served.cut_off} cut off", to_stderr=True)
    if served.cut_off and served.signal is not None:
        raise typer.Exit(_SIGNAL_CODES + served.signal)


def _print_document(endpoint: "Endpoint") -> None:
    from fcn_deploy.cli.console import print_json

    print_json(endpoint.to_dict())
    sys.stdout.flush()


class _FailureLines(logging.Handler):
    """Prints one line on stderr for every request that the server failed to answer."""

    def emit(self, record: logging.LogRecord) -> None:
        from rich.markup import escape

        from fcn_deploy.cli.console import print_line

        print_line(f"[bold red]failed:[/] {escape(record.getMessage())}", to_stderr=True)
