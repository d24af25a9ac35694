import importlib
import inspect
import subprocess
import sys
import types

import pytest

import fcn_deploy as fd


def test_every_name_of_the_facade_resolves() -> None:
    assert len(fd.__all__) > 100
    assert all(hasattr(fd, name) for name in fd.__all__)
    assert dir(fd) == sorted(fd.__all__)


@pytest.mark.parametrize("name", sorted(set(fd.__all__) - {"__version__"}))
def test_everything_public_is_documented(name: str) -> None:
    thing = getattr(fd, name)

    assert inspect.getdoc(thing)
    if inspect.isclass(thing):
        for attribute, member in vars(thing).items():
            if not attribute.startswith("_") and isinstance(member, types.FunctionType | property):
                assert inspect.getdoc(member), f"{name}.{attribute}"


def test_verbs_are_not_hidden_by_modules_of_the_same_name() -> None:
    for module in ("parity.verify", "prediction", "inspection", "doctor"):
        importlib.import_module(f"fcn_deploy.{module}")

    assert all(callable(getattr(fd, verb)) for verb in ("export", "verify", "predict", "inspect", "examine"))


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, fcn_deploy; print(*sorted(m for m in sys.modules if '.' not in m))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert not {"torch", "onnxruntime", "onnx", "numpy", "PIL", "typer", "rich"} & set(done.stdout.split())


def test_unknown_names_are_attribute_errors() -> None:
    with pytest.raises(AttributeError, match="exprot"):
        _ = fd.exprot  # type: ignore[attr-defined]


def test_every_error_has_its_own_exit_code() -> None:
    codes = {
        e.__name__: e.exit_code
        for e in (fd.UsageError, fd.SizeError, fd.InputFileError, fd.CheckpointError, fd.ImageError, fd.BundleError,
                  fd.OutputError, fd.ProviderError, fd.ParityError)
    }  # fmt: skip

    assert codes == {
        "UsageError": 2, "SizeError": 2, "InputFileError": 3, "CheckpointError": 3, "ImageError": 3, "BundleError": 3,
        "OutputError": 3, "ProviderError": 4, "ParityError": 5,
    }  # fmt: skip
    assert str(fd.UsageError("a problem", remedy="A remedy.")) == "a problem\nA remedy."
