"""The version of fcn-deploy, in one place, and those of the packages an artifact depends on."""

import functools
from collections.abc import Iterable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distributions, version

__version__ = "0.1.0"

_RECORDED = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "numpy", "pillow", "onnxruntime-gpu", "onnxruntime")


def package_versions(more: Iterable[str] = ()) -> dict[str, str]:
    """Versions of fcn-deploy and of what makes and runs its artifacts, by distribution name; absent ones left out.

    Args:
        more: further distributions to look for.
    """
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


# Reading what is installed takes 80 ms, and it does not change while a process runs.
@functools.cache
def onnxruntime_wheels() -> tuple[Wheel, ...]:
    """Every installed distribution that provides `onnxruntime`, in the order in which Python looks for them."""
    found = [
        Wheel(d.metadata["Name"].lower().replace("_", "-"), d.version, str(d.locate_file("")))
        for d in distributions()
        if d.metadata["Name"]
    ]
    return tuple(wheel for wheel in found if wheel.name.split("-")[0] == "onnxruntime")
