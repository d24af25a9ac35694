"""The `fcn-deploy` command: registers the commands and turns errors into exit codes."""

import logging
import os
import signal
import sys
from types import FrameType
from typing import Annotated, Any, NoReturn

import typer
from typer.core import TyperCommand, TyperGroup

from fcn_deploy.cli import check, make, measure, use
from fcn_deploy.cli.parameters import OUTPUT
from fcn_deploy.errors import FcnDeployError, InputFileError, InternalError
from fcn_deploy.installation import __version__

_INTERRUPTED = 128 + signal.SIGINT
_TERMINATED = 128 + signal.SIGTERM
# Panel of `fcn-deploy --help`, command, example at the end of the command's help.
_COMMANDS = (
    ("Make", make.export, "export --variant 8s --checkpoint fcn8s.pth --output fcn8s"),
    ("Make", make.optimize, "optimize fcn8s.onnx fcn8s-fast.onnx"),
    ("Make", make.tensorrt, "tensorrt fcn8s --precision fp16"),
    ("Make", make.package, "package fcn8s --target triton --backend python"),
    ("Check", check.verify, "verify fcn8s --checkpoint fcn8s.pth --image photo.jpg"),
    ("Check", check.evaluate, "evaluate fcn8s VOCdevkit/VOC2012 --against pytorch"),
    ("Check", check.inspect, "inspect fcn8s --picture maps.png"),
    ("Check", check.doctor, "doctor"),
    ("Use", use.predict, "predict fcn8s photos/ --output labels"),
    ("Use", use.serve, "serve fcn8s --http-port 8000"),
    ("Use", use.cache, "cache clear"),
    ("Measure", measure.bench, "bench fcn8s --report latency.html"),
    ("Measure", measure.compare, "compare before.json after.json --threshold 0.03"),
    ("Measure", measure.report, "report desktop.json server.json --report both.html"),
)


def _as_shown(parameters: list[Any]) -> list[Any]:
    """Return a command's parameters: flags are shown without a type, and --help in the last panel."""
    for parameter in parameters:
        if getattr(parameter, "is_flag", False):
            parameter.metavar = parameter.metavar or ""
    if any(getattr(parameter, "rich_help_panel", None) == OUTPUT for parameter in parameters):
        parameters[-1].rich_help_panel = OUTPUT
    return parameters


class _Command(TyperCommand):
    def get_params(self, ctx: Any) -> list[Any]:
        return _as_shown(super().get_params(ctx))


class _Group(TyperGroup):
    def get_params(self, ctx: Any) -> list[Any]:
        return _as_shown(super().get_params(ctx))


app = typer.Typer(
    cls=_Group,
    help="Export FCN-32s, FCN-16s and FCN-8s to ONNX, check the export against PyTorch, run it, measure it.",
    epilog="Example: fcn-deploy export --variant 32s",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for _panel, _command, _example in _COMMANDS:
    app.command(cls=_Command, epilog=f"Example: fcn-deploy {_example}", rich_help_panel=_panel)(_command)


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
    """Run the command line; exit codes: 0 done, those of `fcn_deploy.errors`, 130 interrupted, 143 terminated."""
    # PyTorch then asks for huge pages for its large maps, which saves a fifth of the reference's time.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    signal.signal(signal.SIGTERM, _leave)
    _show_notes()
    try:
        app(prog_name="fcn-deploy")
    except SystemExit as leaving:
        if leaving.code in (_INTERRUPTED, _TERMINATED):
            print("interrupted; no partial files were left", file=sys.stderr)  # noqa: T201 - Rich takes time to load
        raise
    except FcnDeployError as error:
        _fail(error)
    except OSError as error:
        # For example a path that is too long, an unreadable directory, or a full disk behind stdout.
        problem = f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"
        _fail(InputFileError(problem, remedy="Check the path, its permissions, and the free disk space."))
    except Exception:
        _fail(_bug())
    sys.exit(0)


def _show_notes() -> None:
    """Print what the library logs on stderr: one line each."""
    logger = logging.getLogger("fcn_deploy")
    logger.setLevel(logging.INFO)
    logger.addHandler(_NOTES)


class _Notes(logging.Handler):
    """Prints records on stderr: errors as failures, for example of a request to the server, all others as notes."""

    def emit(self, record: logging.LogRecord) -> None:
        """Print one record in one line."""
        from rich.markup import escape

        from fcn_deploy.cli.console import print_line

        kind = "[bold red]failed:[/]" if record.levelno >= logging.ERROR else "[yellow]note:[/]"
        print_line(f"{kind} {escape(record.getMessage())}", to_stderr=True)


_NOTES = _Notes()


def _bug() -> InternalError:
    """Return the error for the exception that is being handled, which nobody expected; its traceback is saved."""
    import tempfile
    import traceback

    problem = f"unexpected {traceback.format_exc(limit=0).splitlines()[-1]}"
    try:
        with tempfile.NamedTemporaryFile(
            "w", prefix="fcn-deploy-", suffix=".txt", delete=False, encoding="utf-8", errors="backslashreplace"
        ) as file:
            file.write(traceback.format_exc())
    except OSError:
        return InternalError(problem, remedy="This is a bug: report it. Its traceback could not be saved.")
    return InternalError(problem, remedy=f"This is a bug: report it with {file.name}.")


def _fail(error: FcnDeployError) -> NoReturn:
    from fcn_deploy.cli.console import print_error

    print_error(error)
    sys.exit(error.exit_code)


def _leave(number: int, _frame: FrameType | None) -> NoReturn:
    """Exit through the `finally` blocks, which remove partial files, with the shell's code for the signal."""
    sys.exit(128 + number)
