"""The version of fcn-deploy, in one place, and those of the packages an artifact depends on."""

from importlib.metadata import PackageNotFoundError, version

__version__ = "0.1.0"

_RECORDED = ("torch", "onnx", "onnx-ir", "onnxscript", "onnxsim", "numpy", "pillow", "onnxruntime-gpu", "onnxruntime")


def package_versions() -> dict[str, str]:
    """Versions of fcn-deploy and of what makes and runs its artifacts, by distribution name; absent ones left out."""
    found = {"fcn-deploy": __version__}
    for name in _RECORDED:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            continue
    return found
