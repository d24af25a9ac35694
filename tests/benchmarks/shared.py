"""What benchmarks of tests share: measured once per run, by real processes, where a test is about something else."""

import hashlib
import pickle
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock

if TYPE_CHECKING:
    from benchmarks.engine.cases import Graph
    from benchmarks.engine.workspace import Workspace


def ceilings(folder: Path, *arguments: Any) -> Any:
    """Return the ceilings of this device, measured when they are asked for first."""
    from benchmarks.engine.ceilings import measure_ceilings

    file = folder / f"ceilings-{hashlib.sha256(repr(arguments).encode()).hexdigest()}"
    _once(file, lambda made: made.write_bytes(pickle.dumps(measure_ceilings(*arguments))))
    return pickle.loads(file.read_bytes())  # noqa: S301 - written above


def prepared(folder: Path, workspace: "Workspace", graphs: "frozenset[Graph]") -> None:
    """Fill a workspace with files that are made when a model's are asked for first."""
    from benchmarks.engine.workspace import prepare
    from fcn_deploy.storage import file_sha256

    given = file_sha256(workspace.model_path), sorted(graphs), workspace.rebuild, workspace.photos
    made = folder / f"prepared-{hashlib.sha256(repr(given).encode()).hexdigest()}"

    def fill(own: Path) -> None:
        own.mkdir()
        prepare(replace(workspace, folder=own), graphs)

    _once(made, fill)
    shutil.copytree(made, workspace.folder, dirs_exist_ok=True)


def _once(made: Path, make: Callable[[Path], object]) -> None:
    with FileLock(f"{made}.lock", timeout=100):
        if not made.exists():
            unfinished = made.with_name(f"{made.name}.unfinished")
            shutil.rmtree(unfinished, ignore_errors=True)
            make(unfinished)
            unfinished.rename(made)
