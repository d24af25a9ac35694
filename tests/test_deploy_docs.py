"""The commands of docs/deploy.md, run as they are printed, from the first to the last."""

import re
import socket
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
NEEDED = (
    ".venv",
    ".venv-triton",
    "Makefile",
    "pyproject.toml",
    "constraints.txt",
    "requirements-triton.txt",
    "fcn_deploy",
)
PORTS = (8000, 8001, 8002)


def commands() -> str:
    """What stands behind the prompts `$` and `>`."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "docs" / "deploy.md").read_text(), flags=re.DOTALL)
    lines = [line for block in blocks for line in block.splitlines()]
    assert all(line[:2] in ("$ ", "> ", ">") for line in lines)
    return "\n".join(line[2:] for line in lines)


def in_use(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


@pytest.mark.full
@pytest.mark.timeout(450)
@pytest.mark.skipif(not all((ROOT / name).exists() for name in NEEDED), reason="`make test` makes what it needs")
@pytest.mark.skipif(sys.platform != "linux", reason="the Triton server is for Linux")
@pytest.mark.skipif(any(map(in_use, PORTS)), reason="a port that the page names is in use")
def test_the_page_works_as_printed(tmp_path: Path) -> None:
    for name in NEEDED:
        (tmp_path / name).symlink_to(ROOT / name)

    script = f"set -euo pipefail\n{commands()}\n"
    done = subprocess.run(
        ["/bin/bash", "-c", script], cwd=tmp_path, capture_output=True, text=True, timeout=400, check=False
    )

    assert done.returncode == 0, done.stdout + done.stderr
    assert "mean IU lost in deployment: 0.0000" in done.stdout
    assert done.stdout.count("same labels: True") == 2
    assert "\nequal\n" in done.stdout
    assert (tmp_path / "evaluation" / "index.html").is_file()
