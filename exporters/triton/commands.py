"""The commands that start Triton on a package, and that ask it."""

import shlex
from pathlib import Path

from exporters.triton.options import TritonBackend

# A release whose Python, 3.12, runs this toolkit.
IMAGE = "nvcr.io/nvidia/tritonserver:25.08-py3"
_PORTS = "-p 8000:8000 -p 8001:8001"
_INSTALL = "pip install fcn-deploy"


def commands(output: Path, backend: TritonBackend, *, gpu: bool) -> dict[str, str]:
    """Shell commands by what they do: `server`, `container`, `client`."""
    repository = shlex.quote(str(output / "repository"))
    mounted = shlex.quote(f"{(output / 'repository').absolute()}:/models:ro")
    device = "--gpus all " if gpu else ""
    serve = "tritonserver --model-repository /models"
    inside = f'sh -c "{_INSTALL} && {serve}"' if backend is TritonBackend.PYTHON else serve
    return {
        "server": f"tritonserver --model-repository {repository}",
        "container": f"docker run --rm {device}{_PORTS} -v {mounted} {IMAGE} {inside}",
        "client": f"python {shlex.quote(str(output / 'client.py'))} photo.jpg",
    }
