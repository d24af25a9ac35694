"""`fcn-deploy inspect`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from fcn_deploy.cli.parameters import ArtifactPath, Json

if TYPE_CHECKING:
    from fcn_deploy.inspection import Inspection

EPILOG = "Example: fcn-deploy inspect fcn8s --picture maps.png"


def inspect(
    bundle: ArtifactPath,
    picture: Annotated[
        Path | None,
        typer.Option(help="Draw which part of every map depends on the image, to a .png or .svg.", show_default=False),
    ] = None,
    json: Json = False,
) -> None:
    """Show an artifact's layers, map sizes, parameters, multiply-adds, metadata, and what to know about it."""
    import fcn_deploy as fd
    from fcn_deploy.artifact import is_engine
    from fcn_deploy.cli.console import print_json, print_line

    if is_engine(bundle):
        _inspect_engine(bundle, picture, as_json=json)
        return
    inspection = fd.inspect(bundle)
    drawn = fd.draw_regions(bundle, picture) if picture is not None else None
    if json:
        print_json(inspection.to_dict())
        return
    _show(inspection)
    if drawn is not None:
        print_line(f"wrote {drawn}")


def _inspect_engine(path: Path, picture: Path | None, *, as_json: bool) -> None:
    from rich.markup import escape

    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, print_line
    from fcn_deploy.cli.render import print_engine

    if picture is not None:
        raise fd.UsageError(
            f"{path} is an engine, which has no maps to draw", remedy="Pass the bundle it was built from."
        )
    engine = fd.open_engine(path)
    if as_json:
        print_json(engine.to_dict())
        return
    print_engine(engine)
    print_line(f"{engine.plan_bytes / 1e6:.1f} MB, from an ONNX file of SHA-256 {engine.source_sha256}")
    for key, value in engine.metadata.items():
        print_line(f"[dim]{escape(key)}[/] {escape(value)}")


def _show(inspection: "Inspection") -> None:
    from rich.markup import escape

    from fcn_deploy.cli.console import out, plain_table, print_line

    table = plain_table(escape(str(inspection.path)), "layer", "operator", "output", "parameters", "multiply-adds")
    for layer in inspection.layers:
        shape = "x".join(str(n) for n in layer.shape)
        macs = f"{layer.multiply_adds / 1e6:,.1f} M" if layer.multiply_adds else ""
        table.add_row(
            escape(layer.name), escape(layer.operator), shape, f"{layer.parameters:,}" if layer.parameters else "", macs
        )
    table.add_section()
    table.add_row("total", "", "", f"{inspection.parameters:,}", f"{inspection.multiply_adds / 1e9:.1f} G")
    out.print(table)
    operators = ", ".join(f"{name} {count}" for name, count in inspection.operators.items())
    ends = f"in: {', '.join(inspection.inputs)}; out: {', '.join(inspection.outputs)}; opset {inspection.opset}"
    print_line(escape(ends))
    print_line(escape(f"{inspection.file_bytes / 1e6:.1f} MB, {len(inspection.layers)} nodes: {operators}"))
    for key, value in inspection.metadata.items():
        print_line(f"[dim]{escape(key)}[/] {escape(value)}")
    for note in inspection.notes:
        print_line(f"[yellow]note:[/] {escape(note)}")
