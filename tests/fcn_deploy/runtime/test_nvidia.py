import os
import shutil
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from fcn_deploy.installation import Wheel
from fcn_deploy.runtime import nvidia

BOTH = (("onnxruntime", "1.30"), ("onnxruntime-gpu", "1.31"))
COMPILER = shutil.which("cc") or ""
TOO_OLD = "the NVIDIA driver is too old: it runs CUDA up to 12.4, this onnxruntime is built for CUDA 13.0"


@pytest.mark.parametrize(("found", "needed", "problem"), [
    (None, (13, 0), "no NVIDIA driver (libcuda.so.1 is not found)"),
    ((12, 4), (13, 0), TOO_OLD),
    ((13, 0), (13, 0), None),
    ((13, 0), (13, 2), None),  # minor version compatibility
    ((14, 0), (13, 0), None),
    ((11, 0), None, None),
])  # fmt: skip
def test_drivers(found: nvidia.Version | None, needed: nvidia.Version | None, problem: str | None) -> None:
    assert nvidia.driver_problem(found, needed) == problem


@pytest.mark.parametrize(("problem", "remedy"), [
    ("no NVIDIA driver (libcuda.so.1 is not found)", "Install an NVIDIA driver, then pip install"),
    ("the NVIDIA driver is too old: it runs", "Install a newer NVIDIA driver."),
    ("CUDA driver version is insufficient for CUDA runtime version", "Install a newer NVIDIA driver."),
    ("libcudnn.so.9: cannot open shared object file: No such file", "pip install 'onnxruntime-gpu[cudnn]'."),
    ("libcublasLt.so.13: cannot open shared object file", "pip install 'onnxruntime-gpu[cuda,cudnn]'."),
    ("libnvinfer.so.10: cannot open shared object file", "pip install tensorrt."),
])  # fmt: skip
def test_each_problem_has_its_remedy(problem: str, remedy: str) -> None:
    assert nvidia.remedy(problem).startswith(remedy)


def output_of(command: list[str], environment: dict[str, str]) -> str:
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=60)
    return done.stdout


@pytest.mark.skipif(not COMPILER or sys.platform != "linux", reason="needs a C compiler and ELF")
def test_a_hidden_cudnn_is_named_by_the_loader_itself(tmp_path: Path) -> None:
    """A stand-in for the provider's library that really needs a cuDNN which is really gone."""
    package = tmp_path / "onnxruntime"
    (package / "capi").mkdir(parents=True)
    (package / "__init__.py").write_text("")
    (tmp_path / "empty.c").write_text("int answer(void) { return 42; }")
    (tmp_path / "user.c").write_text("int answer(void); int ask(void) { return answer(); }")
    cudnn, provider = tmp_path / "libcudnn.so.9", package / "capi" / "libonnxruntime_providers_cuda.so"
    compiler = [COMPILER, "-shared", "-fPIC", "-o"]
    subprocess.run([*compiler, cudnn, tmp_path / "empty.c", "-Wl,-soname,libcudnn.so.9"], check=True, timeout=60)
    subprocess.run([*compiler, provider, tmp_path / "user.c", cudnn], check=True, timeout=60)
    ask = "from fcn_deploy.runtime import nvidia; print(nvidia.provider_library_problem('cuda'))"
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(tmp_path), *filter(None, sys.path)])}

    cudnn.unlink()
    hidden = output_of([sys.executable, "-P", "-c", ask], environment)

    assert hidden.startswith("libcudnn.so.9: cannot open shared object file")
    assert nvidia.remedy(hidden) == "pip install 'onnxruntime-gpu[cudnn]'."


def test_a_library_that_does_not_exist_has_no_version() -> None:
    assert nvidia.library_version("libsurelynotthere.so.1", None) is None
    assert nvidia.library_version("libc.so.6", None) == 0


@pytest.mark.parametrize(("wheels", "clashing"), [
    ([(*wheel, "/a") for wheel in BOTH], dict(BOTH)),
    ([("onnxruntime-gpu", "1.31", "/b"), ("onnxruntime", "1.30", "/a")], {}),
    ([("onnxruntime-gpu", "1.31", "/b")], {}),
    ([], {}),
])  # fmt: skip
def test_wheels_clash_when_they_share_a_folder(
    wheels: list[tuple[str, str, str]], clashing: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nvidia, "onnxruntime_wheels", lambda: tuple(Wheel(*wheel) for wheel in wheels))

    assert nvidia.clashing_wheels() == clashing


@pytest.mark.skipif(not Path("/proc/self/maps").exists(), reason="the system does not list loaded libraries")
def test_libraries_that_another_package_brought_into_another_folder_are_loaded(tmp_path: Path) -> None:
    """As on hosts where PyTorch's wheels lie in one folder and ONNX Runtime's in another, earlier on the path."""
    library = tmp_path / "nvidia" / "cu99" / "lib" / "libcurand.so.99"
    library.parent.mkdir(parents=True)
    shutil.copy(Path(onnxruntime.__file__).parent / "capi" / "libonnxruntime_providers_shared.so", library)
    (library.parent / "libcublas.so.99").write_bytes(b"no library")
    code = "from fcn_deploy.runtime import ort; ort.preload_libraries(); print(open('/proc/self/maps').read())"

    def loaded(*path: str) -> bool:
        variables = os.environ | {"PYTHONPATH": os.pathsep.join([*sys.path, *path])}
        return str(library) in output_of([sys.executable, "-c", code], variables)

    assert loaded(str(tmp_path))
    assert not loaded()
