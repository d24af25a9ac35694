"""fcn-deploy: export fully convolutional networks to ONNX, prove the export, run it.

    import fcn_deploy as fd

    result = fd.export(fd.ExportOptions(fd.Variant.FCN8S, Path("fcn8s"), weights=fd.WeightsOptions(Path("fcn8s.pth"))))
    fd.verify(result.path, fd.VerifyOptions(checkpoint=Path("fcn8s.pth"))).parity.require()
    for prediction in fd.predict(result.path, [Path("photo.jpg")]):
        print(prediction.shares)

Everything raises subclasses of `FcnDeployError`. Names are imported when they are first used, so that importing this
package costs nothing: PyTorch is loaded by what needs it. The table of names is the stub beside this file, which type
checkers read too.
"""

import functools
import importlib
from typing import Any


# lazy_loader does the same, but only for names of its own package; some of these are of `exporters` and `benchmarks`.
@functools.cache
def _module_of() -> dict[str, str]:
    """The module that each public name is imported from."""
    import ast
    from pathlib import Path

    imports = ast.parse(Path(__file__).with_suffix(".pyi").read_text("utf-8")).body
    return {name.name: str(n.module) for n in imports if isinstance(n, ast.ImportFrom) for name in n.names}


def __getattr__(name: str) -> Any:
    if name == "__all__":
        return sorted(_module_of())
    if (name.startswith("__") and name != "__version__") or name not in _module_of():
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(importlib.import_module(_module_of()[name]), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted(_module_of())
