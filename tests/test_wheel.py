"""The built wheel holds all three packages and runs from nothing but itself and its dependencies."""

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
        cwd=ROOT, check=True, capture_output=True,
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


def test_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    zipfile.ZipFile(wheel).extractall(tmp_path)
    code = "import sys; sys.path.insert(0, '.'); import fcn_deploy, runpy; print(fcn_deploy.__file__); "
    code += "sys.argv = ['fcn-deploy', 'export', '--variant', '8s', '--channel-divisor', '16', '--size', '64']; "
    code += "runpy.run_module('fcn_deploy', run_name='__main__')"

    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, check=False)

    assert done.returncode == 0, done.stderr
    assert str(tmp_path) in done.stdout
    assert (tmp_path / "fcn8s" / "model.onnx").is_file()
