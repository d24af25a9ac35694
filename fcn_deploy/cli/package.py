"""`fcn-deploy package`."""

from pathlib import Path
from typing import Annotated, Literal

from exporters.triton.options import STORAGE_PLACEHOLDER
from fcn_deploy.choices import Provider, TritonBackend
from fcn_deploy.cli.parameters import ArtifactPath, Force, Json, output_option, panel

model_option = panel("Model")
triton_option = panel("Triton")


def package(
    bundle: ArtifactPath,
    target: Annotated[Literal["triton"], model_option(help="The server to package for.")] = "triton",  # noqa: ARG001
    backend: Annotated[
        TritonBackend, model_option(help="Triton backend that runs the model; tensorrt needs an engine.")
    ] = TritonBackend.ONNXRUNTIME,
    name: Annotated[str | None, model_option(help="Name of the model. Default: the bundle's name.")] = None,
    instances: Annotated[int, triton_option(help="Model instances that run in parallel.")] = 1,
    queue_delay: Annotated[
        int | None,
        triton_option(
            metavar="US", help="Longest wait for further requests to fill a batch, in microseconds. Default: 1000."
        ),
    ] = None,
    provider: Annotated[Provider | None, triton_option(help="Where ONNX Runtime runs in Triton. Default: cpu.")] = None,
    workspace: Annotated[
        int | None, triton_option(metavar="MB", help="Provider tensorrt: limit of scratch memory in MiB.")
    ] = None,
    engine_cache: Annotated[
        str | None,
        triton_option(metavar="PATH", help="Provider tensorrt: folder on the server that keeps built engines."),
    ] = None,
    output: Annotated[Path, output_option(help="Directory of the package.")] = Path("triton"),
    storage_uri: Annotated[
        str, output_option(metavar="URI", help="Where Kubernetes fetches the repository from.")
    ] = STORAGE_PLACEHOLDER,
    force: Force = False,
    json: Json = False,
) -> None:
    """Write a Triton model repository, with a client and a KServe manifest.

    Clients send photos as uint8 RGB and receive label maps.
    """
    import fcn_deploy as fd
    from fcn_deploy.cli.console import print_json, show_step
    from fcn_deploy.cli.render import print_package

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
        print_package(result, placeholder=storage_uri == STORAGE_PLACEHOLDER)
