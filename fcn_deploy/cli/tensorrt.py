"""`fcn-deploy tensorrt`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.choices import FlavourName, Precision
from fcn_deploy.cli.parameters import BundlePath, Json, parse_capabilities

if TYPE_CHECKING:
    from rich.progress import TaskID

    from exporters.tensorrt.build import EngineBuild, Phase

EPILOG = "Example: fcn-deploy tensorrt fcn8s --precision fp16"


def tensorrt(
    bundle: BundlePath,
    precision: Annotated[
        Precision | None, typer.Option(help="What it computes in. Default: what the bundle does.", show_default=False)
    ] = None,
    calibration: Annotated[
        list[Path] | None,
        typer.Option(
            metavar="PATH",
            help="A photo, or a folder of them, to reduce a float32 bundle on; may be repeated. "
            "Default: a portrait that comes along.",
        ),
    ] = None,
    flavour: Annotated[
        FlavourName | None, typer.Option(help="Which TensorRT. Default: what is installed.", show_default=False)
    ] = None,
    compute_capability: Annotated[
        str,
        typer.Option(
            metavar="8.9,12.0", help="GPUs to build for without one, TensorRT-RTX only. Default: this machine's."
        ),
    ] = "",
    workspace: Annotated[
        int | None, typer.Option(metavar="MB", help="Limit on scratch memory in MiB.", show_default=False)
    ] = None,
    timing_cache: Annotated[
        Path | None, typer.Option(help="File that keeps what the build measured, TensorRT only.", show_default=False)
    ] = None,
    output: Annotated[Path | None, typer.Option(help="The plan. Default: BUNDLE.plan.", show_default=False)] = None,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace an existing engine.")] = False,
    json: Json = False,
) -> None:
    """Build a TensorRT engine from a bundle: a plain plan, and a sidecar that says what it is and where it runs.

    With TensorRT-RTX engines are built for named GPUs on any machine; with TensorRT, for the GPU of this one.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, show_step

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
    bars = _PhaseBars()
    with bars.progress:
        result = fd.build_engine(options, show_step, bars)
    if json:
        print_json(result.to_dict())
    else:
        _show(result)


class _PhaseBars:
    """A bar for every phase that TensorRT is in, on a terminal."""

    def __init__(self) -> None:
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn

        from fcn_deploy.cli.console import err

        columns = TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn()
        self.progress = Progress(*columns, console=err, transient=True, disable=not err.is_terminal)
        self._tasks: dict[str, TaskID] = {}

    def __call__(self, phases: "tuple[Phase, ...]") -> None:
        from rich.markup import escape

        for name in self._tasks.keys() - {phase.name for phase in phases}:
            self.progress.remove_task(self._tasks.pop(name))
        for phase in phases:
            if phase.name not in self._tasks:
                self._tasks[phase.name] = self.progress.add_task(escape(phase.name), total=phase.steps)
            self.progress.update(self._tasks[phase.name], completed=phase.done)


def _show(result: "EngineBuild") -> None:
    from rich.markup import escape

    from fcn_deploy.cli.console import print_line
    from fcn_deploy.cli.render import layer_line, print_engine

    engine = result.engine
    if result.up_to_date:
        print_line(f"[green]up to date[/]: {escape(str(engine.path))} was built of the same; nothing was done")
        print_line(escape(layer_line(engine)))
        return
    print_engine(engine)
    print_line(
        f"wrote {escape(str(engine.path))}: {engine.plan_bytes / 1e6:.1f} MB, built in {engine.build_seconds:.1f} s"
    )
