"""`fcn-deploy inspect`."""

from pathlib import Path
from typing import Annotated

from fcn_deploy.cli.parameters import ArtifactPath, Json, output_option


def inspect(
    bundle: ArtifactPath,
    picture: Annotated[
        Path | None, output_option(help="Draw which part of every feature map depends on the image, to a .png or .svg.")
    ] = None,
    json: Json = False,
) -> None:
    """Show layers, map sizes, parameters, multiply-adds, metadata and warnings of an artifact."""
    import fcn_deploy as fd
    from fcn_deploy.artifact import is_engine
    from fcn_deploy.cli.console import print_json, print_line
    from fcn_deploy.cli.render import print_inspection

    if is_engine(bundle):
        _inspect_engine(bundle, picture, as_json=json)
        return
    inspection = fd.inspect(bundle)
    drawn = fd.draw_regions(bundle, picture) if picture is not None else None
    if json:
        print_json(inspection.to_dict())
        return
    print_inspection(inspection)
    if drawn is not None:
        print_line(f"wrote {drawn}")


def _inspect_engine(path: Path, picture: Path | None, *, as_json: bool) -> None:
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json
    from fcn_deploy.cli.render import print_inspected_engine

    if picture is not None:
        raise fd.UsageError(
            f"{path} is an engine, which has no feature maps to draw", remedy="Pass the bundle it was built from."
        )
    engine = fd.open_engine(path)
    if as_json:
        print_json(engine.to_dict())
    else:
        print_inspected_engine(engine)
