"""The built wheel holds all three packages and runs from nothing but itself and its dependencies."""

import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", str(folder)],
        cwd=ROOT, check=True, capture_output=True, timeout=60,
    )  # fmt: skip
    (path,) = folder.glob("*.whl")
    return path


def test_contents(wheel: Path) -> None:
    names = zipfile.ZipFile(wheel).namelist()

    tracked = {
        str(p.relative_to(ROOT))
        for package in ("fcn_deploy", "exporters", "benchmarks")
        for p in (ROOT / package).rglob("*.py")
    }
    repository_only = {
        f"benchmarks/{name}.py" for name in ("readme", "train_sample", "precision_gain", "pipeline", "serving")
    }
    assert tracked - repository_only == {name for name in names if name.endswith(".py")}
    assert {
        "fcn_deploy/py.typed", "fcn_deploy/assets/astronaut.jpg", "fcn_deploy/assets/scene.jpg",
        "fcn_deploy/assets/scene.png", "fcn_deploy/evaluation/templates/evaluation.html.jinja",
        "fcn_deploy/assets/sample.safetensors", "benchmarks/report/templates/report.html.jinja",
        *(f"fcn_deploy/serving/static/{name}" for name in ("index.html", "page.css", "page.js")),
    } <= set(names)  # fmt: skip
    assert not any("results/" in name for name in names)
    assert {name.split("/")[0].partition("-")[0] for name in names} == {"fcn_deploy", "exporters", "benchmarks"}


def test_metadata(wheel: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    infos = [name for name in archive.namelist() if ".dist-info/" in name]
    texts = {name.rpartition("/")[2]: archive.read(name).decode() for name in infos}

    assert "fcn-deploy = fcn_deploy.cli.app:main" in texts["entry_points.txt"]
    assert "License-Expression: Apache-2.0" in texts["METADATA"]
    assert "Requires-Python: >=3.11" in texts["METADATA"]
    assert "Apache License" in texts["LICENSE"]


@pytest.fixture(scope="module")
def unpacked(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("unpacked")
    zipfile.ZipFile(wheel).extractall(folder)
    return folder


def run_from(unpacked: Path, code: str, cwd: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """Run code that finds the wheel's packages in the unpacked wheel, the checkout being nowhere on its path."""
    here = f"import sys; sys.path = [{str(unpacked)!r}, *(p for p in sys.path if p != {str(ROOT)!r})]\n"
    command = [sys.executable, "-P", "-c", here + code, *arguments]
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    return subprocess.run(command, cwd=cwd, env=environment, capture_output=True, text=True, check=False, timeout=100)


IMPORT_EVERYTHING = """
import importlib, traceback
for name in sys.argv[1:]:
    try:
        file = importlib.import_module(name).__file__
        if not file.startswith(sys.path[0]):
            print(f"{name} comes from {file}")
    except BaseException:
        print(f"{name} cannot be imported:", traceback.format_exc())
"""


def test_every_module_can_be_imported_from_the_wheel_alone(wheel: Path, unpacked: Path, tmp_path: Path) -> None:
    files = [name for name in zipfile.ZipFile(wheel).namelist() if name.endswith(".py")]
    # The first imports a module that there is in a Triton server only; `python -m` alone runs the others.
    files = [n for n in files if n != "exporters/triton/python_backend/model.py" and not n.endswith("__main__.py")]
    modules = [name.removesuffix(".py").removesuffix("/__init__").replace("/", ".") for name in files]

    done = run_from(unpacked, IMPORT_EVERYTHING, tmp_path, *modules)

    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert len(modules) > 100


def test_the_sample_is_exported_from_the_wheel_alone(unpacked: Path, tmp_path: Path) -> None:
    code = "from fcn_deploy.cli.app import main; main()"

    done = run_from(unpacked, code, tmp_path, "export", "--variant", "8s", "--checkpoint", "sample")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "fcn8s" / "model.onnx").is_file()
