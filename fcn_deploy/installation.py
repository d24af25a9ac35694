"""The version of fcn-deploy, and which packages are installed."""

import functools
import importlib.util
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import Distribution, PackageNotFoundError, version
from pathlib import Path

from fcn_deploy.errors import FcnDeployError, UsageError

__version__ = "0.1.0"

_RECORDED = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "numpy", "pillow", "onnxruntime-gpu", "onnxruntime")


def package_versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Return versions by name of fcn-deploy, its main dependencies and `more` packages; absent ones are left out."""
    found = {"fcn-deploy": __version__}
    for name in (*_RECORDED, *more):
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found


@dataclass(frozen=True)
class Wheel:
    """An installed distribution: its name, its version, and the folder it lies in."""

    name: str
    version: str
    folder: str


# They do not change while a process runs.
@functools.cache
def onnxruntime_wheels() -> tuple[Wheel, ...]:
    """Return every installed distribution that provides `onnxruntime`, in Python's search order."""
    # `importlib.metadata.distributions` would read the metadata of all packages, which takes 0.1 s.
    folders = [
        folder for entry in dict.fromkeys(sys.path) for folder in sorted(Path(entry).glob("onnxruntime*.*-info"))
    ]
    found = [
        Wheel(d.metadata["Name"].lower().replace("_", "-"), d.version, str(d.locate_file("")))
        for d in map(Distribution.at, folders)
        if d.metadata["Name"]
    ]
    return tuple(wheel for wheel in found if wheel.name.split("-")[0] == "onnxruntime")


def missing_packages(modules: Iterable[str]) -> tuple[str, ...]:
    """Return those of `modules` that are not installed; none of them is imported."""
    return tuple(name for name in modules if importlib.util.find_spec(name) is None)


def require_extra(
    purpose: str, extra: str, modules: Iterable[str], *, error: type[FcnDeployError] = UsageError
) -> None:
    """Check that the top-level `modules` that an `extra` of fcn-deploy installs are importable.

    If one is missing, the `error` names it, the extra, and the `purpose` it is needed for, e.g. `--engine ray`.
    """
    missing = missing_packages(modules)
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise error(
            f"{purpose} needs {' and '.join(missing)}, which {verb} not installed",
            remedy=f"pip install 'fcn-deploy[{extra}]'",
        )
