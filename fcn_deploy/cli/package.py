"""`fcn-deploy package`."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer

from exporters.triton.options import STORAGE_PLACEHOLDER
from fcn_deploy.choices import Provider, TritonBackend
from fcn_deploy.cli.parameters import ArtifactPath, Json

if TYPE_CHECKING:
    from rich.tree import Tree

    from exporters.triton.repository import Package

_SHOWN_BYTES = 50_000
EPILOG = "Example: fcn-deploy package fcn8s --target triton --backend python"


def package(
    bundle: ArtifactPath,
    target: Annotated[Literal["triton"], typer.Option(help="The server it is for.")] = "triton",  # noqa: ARG001
    backend: Annotated[
        TritonBackend, typer.Option(help="What runs the model in Triton; tensorrt takes an engine.")
    ] = TritonBackend.ONNXRUNTIME,
    output: Annotated[Path, typer.Option(help="Directory of the package.")] = Path("triton"),
    name: Annotated[
        str | None, typer.Option(help="What clients call the model. Default: the bundle's name.", show_default=False)
    ] = None,
    provider: Annotated[
        Provider | None, typer.Option(help="Where ONNX Runtime runs in Triton. Default: cpu.", show_default=False)
    ] = None,
    instances: Annotated[int, typer.Option(help="Copies of the model that run at once.")] = 1,
    queue_delay: Annotated[
        int | None,
        typer.Option(
            metavar="US",
            help="How long a request may wait for others to fill the batch, in microseconds. Default: 1000.",
            show_default=False,
        ),
    ] = None,
    workspace: Annotated[
        int | None,
        typer.Option(metavar="MB", help="Provider tensorrt: limit on scratch memory in MiB.", show_default=False),
    ] = None,
    engine_cache: Annotated[
        str | None,
        typer.Option(
            metavar="PATH", help="Provider tensorrt: folder on the server that keeps what it built.", show_default=False
        ),
    ] = None,
    storage_uri: Annotated[
        str, typer.Option(metavar="URI", help="Where Kubernetes fetches the repository from.")
    ] = STORAGE_PLACEHOLDER,
    force: Annotated[bool, typer.Option("--force", metavar="", help="Replace an existing package.")] = False,
    json: Json = False,
) -> None:
    """Write a Triton model repository: photos as uint8 RGB in, label maps out; with a client and a KServe manifest."""
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, show_step

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
    result = fd.package(options, show_step)
    if json:
        print_json(result.to_dict())
    else:
        _show(result, placeholder=storage_uri == STORAGE_PLACEHOLDER)


def _show(result: "Package", *, placeholder: bool) -> None:
    from rich.markup import escape

    from fcn_deploy.cli.console import out, print_line

    out.print(_tree(result), highlight=False, soft_wrap=True)
    print_line(escape(f"{result.info.network}, {result.info.provenance}"))
    if result.info.provenance.untrained:
        print_line("untrained weights: the labels mean nothing", to_stderr=True)
    print_line(escape(_interface(result)))
    for what, command in result.commands.items():
        print_line(f"[dim]{what}:[/] {escape(command)}")
    if placeholder:
        print_line("for Kubernetes, write where the repository lies into inference-service.yaml, or pass --storage-uri")


def _interface(result: "Package") -> str:
    parts = [f"in: {result.input}", f"out: {result.output}"]
    parts += ["-1 is any size"] if -1 in result.input.shape else []
    parts += [f"requests of 1 to {result.max_batch} photos, run together up to as many"] if result.max_batch else []
    return "; ".join(parts)


def _tree(result: "Package") -> "Tree":
    from rich.markup import escape
    from rich.tree import Tree

    tree = Tree(escape(str(result.path)))
    folders = {"": tree}
    for name, size in result.files.items():
        folder, _, file = name.rpartition("/")
        parts = folder.split("/") if folder else []
        for depth, part in enumerate(parts):
            here, above = "/".join(parts[: depth + 1]), "/".join(parts[:depth])
            if here not in folders:
                folders[here] = folders[above].add(escape(part))
        folders[folder].add(escape(f"{file}  {size / 1e6:.1f} MB" if size >= _SHOWN_BYTES else file))
    return tree
