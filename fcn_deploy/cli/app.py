"""The `fcn-deploy` command: registers the commands and maps errors to exit codes."""

import os
import signal
import sys
from types import FrameType
from typing import Annotated, NoReturn

import typer

from fcn_deploy.cli import (
    bench,
    compare,
    doctor,
    evaluate,
    export,
    inspect,
    optimize,
    package,
    predict,
    report,
    serve,
    tensorrt,
    verify,
)
from fcn_deploy.errors import FcnDeployError, InputFileError
from fcn_deploy.installation import __version__

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM

app = typer.Typer(
    name="fcn-deploy",
    help="Export FCN-32s, FCN-16s and FCN-8s to ONNX, prove the export equal to PyTorch, run it, measure it.",
    epilog="Example: fcn-deploy export --variant 32s",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command(epilog=export.EPILOG)(export.export)
app.command(epilog=verify.EPILOG)(verify.verify)
app.command(epilog=optimize.EPILOG)(optimize.optimize)
app.command(epilog=tensorrt.EPILOG)(tensorrt.tensorrt)
app.command(epilog=predict.EPILOG)(predict.predict)
app.command(epilog=evaluate.EPILOG)(evaluate.evaluate)
app.command(epilog=package.EPILOG)(package.package)
app.command(epilog=serve.EPILOG)(serve.serve)
app.command(epilog=bench.EPILOG)(bench.bench)
app.command(epilog=compare.EPILOG)(compare.compare)
app.command(epilog=report.EPILOG)(report.report)
app.command(epilog=inspect.EPILOG)(inspect.inspect)
app.command(epilog=doctor.EPILOG)(doctor.doctor)


def _print_version(value: bool) -> None:
    if value:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


def main() -> NoReturn:
    """Run the command line; exit codes: 0 done, 2 to 7 as in `fcn_deploy.errors`, 130 interrupted, 143 terminated."""
    # PyTorch then asks for huge pages for its large maps, which saves a fifth of the reference's time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    signal.signal(signal.SIGTERM, _leave)
    try:
        app()
    except SystemExit as leaving:
        if leaving.code in (_INTERRUPTED, _TERMINATED):
            print("interrupted; nothing half-written remains", file=sys.stderr)  # noqa: T201 - Rich takes time to load
        raise
    except FcnDeployError as error:
        from fcn_deploy.cli.console import show_error

        show_error(error)
        sys.exit(error.exit_code)
    except OSError as error:
        from fcn_deploy.cli.console import show_error

        # A path too long, a directory that may not be read, a full disk behind stdout.
        problem = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        show_error(InputFileError(problem, remedy="Check the path, its permissions, and the space left there."))
        sys.exit(InputFileError.exit_code)
    sys.exit(0)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """Leave through the `finally` blocks, so that nothing half-written stays, with the shell's code for the signal."""
    sys.exit(128 + number)
