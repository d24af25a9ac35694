"""ONNX Runtime: the only module that names it.

ONNX Runtime falls back to the CPU by itself, with a warning at most, when the provider asked for cannot be loaded. Here
that is an error: the provider that was asked for runs, or nothing does.
"""

import contextlib
import ctypes
import io
from importlib.metadata import distributions
from pathlib import Path
from typing import Any

import numpy.typing as npt
import onnx
import onnxruntime as ort

from fcn_deploy.errors import BundleError, ProviderError
from fcn_deploy.onnx_file import skeleton_bytes
from fcn_deploy.runtime.base import Runner, TensorSpec
from fcn_deploy.runtime.provider import Provider

_SILENT = 4  # every problem reaches the user as an exception; the log would only say it twice
_FALLBACK_KEY = "session.disable_cpu_ep_fallback"
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_DTYPES = {"tensor(float)": "float32", "tensor(float16)": "float16", "tensor(uint8)": "uint8", "tensor(int64)": "int64"}


# (ONNX Runtime's name, its options). TF32 is off: graph equality is the question here.
_PROVIDERS: dict[Provider, tuple[str, dict[str, str]]] = {
    Provider.CPU: ("CPUExecutionProvider", {}),
    Provider.CUDA: ("CUDAExecutionProvider", {"use_tf32": "0"}),
}


class OrtRunner(Runner):
    """Runs an ONNX file with ONNX Runtime; its weights are mapped from the file, not copied through protobuf.

    Args:
        path: the model.
        provider: where to run it.

    Raises:
        ProviderError: on opening, when that provider is not what would run.
        BundleError: on opening, when ONNX Runtime refuses the model.
    """

    def __init__(self, path: Path, provider: Provider = Provider.CPU) -> None:
        self.path = path
        self.provider = provider
        self.name = f"ONNX Runtime {ort.__version__} {provider.upper()}"
        self._session: ort.InferenceSession | None = None

    def _open(self) -> None:
        require_provider(self.provider)
        options = _session_options(self.provider)
        options.add_session_config_entry(_FOLDER_KEY, str(self.path.resolve().parent))
        skeleton = skeleton_bytes(self.path)
        try:
            self._session = ort.InferenceSession(skeleton, options, providers=[_PROVIDERS[self.provider]])
        except Exception as error:  # ONNX Runtime's exceptions share no base below Exception
            raise BundleError(f"ONNX Runtime refuses {self.path}: {error}", remedy="Export the model again.") from error
        running = self._session.get_providers()
        if _PROVIDERS[self.provider][0] not in running:
            raise ProviderError(
                f"provider {self.provider}: ONNX Runtime fell back to {', '.join(running)}",
                remedy="Run `fcn-deploy doctor`, or pass --provider cpu.",
            )
        self.inputs = tuple(
            TensorSpec(i.name, tuple(i.shape), _DTYPES.get(i.type, i.type)) for i in self._session.get_inputs()
        )

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        if self._session is None:
            raise RuntimeError("the runner is not open: use it as a context manager")
        names = [output.name for output in self._session.get_outputs()]
        return dict(zip(names, self._session.run(names, feeds), strict=True))

    def _close(self) -> None:
        self._session = None


def require_provider(provider: Provider) -> None:
    """Check, with a model of one node, that `provider` itself would run.

    Raises:
        ProviderError: it would not; says what could not be loaded.
    """
    name = _PROVIDERS[provider][0]
    if name not in ort.get_available_providers():
        raise ProviderError(
            f"provider {provider}: this onnxruntime build has only {', '.join(ort.get_available_providers())}",
            remedy="pip uninstall onnxruntime, then pip install onnxruntime-gpu.",
        )
    problem = provider_problem(provider)
    if problem is not None:
        raise ProviderError(
            f"provider {provider} cannot run here: {problem}",
            remedy="Install an NVIDIA driver and the CUDA and cuDNN this build wants "
            "(pip install 'onnxruntime-gpu[cuda,cudnn]'), or pass --provider cpu; see `fcn-deploy doctor`.",
        )


def provider_problem(provider: Provider) -> str | None:
    """Why `provider` cannot run a model here, or None when it can."""
    if provider is Provider.CPU:
        return None
    preload_libraries()
    ort.set_default_logger_severity(_SILENT)
    try:
        ort.InferenceSession(_probe_model(), _session_options(provider), providers=[_PROVIDERS[provider]])
    except Exception as error:  # ONNX Runtime's exceptions share no base below Exception
        # It says only that it would have fallen back; the loader says why.
        return _library_problem() or str(error)
    return None


def preload_libraries() -> None:
    """Load CUDA's and cuDNN's libraries from where pip put them, if they are there."""
    # It prints what it does not find; provider_problem says it with a remedy.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AttributeError):
        ort.preload_dlls()


def available_providers() -> tuple[str, ...]:
    """ONNX Runtime's names of the providers this build was made with, whether or not they can be loaded."""
    return tuple(ort.get_available_providers())


def installed_wheels() -> dict[str, str]:
    """Versions of every installed distribution that provides `onnxruntime`, by name; two of them shadow each other."""
    found = {d.metadata["Name"].lower().replace("_", "-"): d.version for d in distributions() if d.metadata["Name"]}
    return {name: version for name, version in sorted(found.items()) if name.split("-")[0] == "onnxruntime"}


def _library_problem() -> str | None:
    """What keeps the CUDA provider's library from loading.

    Only to be asked after ONNX Runtime has tried: the library looks for its host while it is loaded, once and for all.
    """
    folder = Path(ort.__file__).parent / "capi"
    for name in ("libonnxruntime_providers_shared.so", "libonnxruntime_providers_cuda.so"):
        library = folder / name
        if library.exists():
            try:
                ctypes.CDLL(str(library), mode=ctypes.RTLD_GLOBAL)
            except OSError as error:
                return str(error)
    return None


def _session_options(provider: Provider) -> ort.SessionOptions:
    options = ort.SessionOptions()
    options.log_severity_level = _SILENT
    if provider is not Provider.CPU:
        options.add_session_config_entry(_FALLBACK_KEY, "1")
    return options


def _probe_model() -> bytes:
    shape = [1, 1, 4, 4]
    node = onnx.helper.make_node("Relu", ["x"], ["y"])
    tensors = [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape) for name in ("x", "y")]
    graph = onnx.helper.make_graph([node], "probe", tensors[:1], tensors[1:])
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 18)], ir_version=10)
    return bytes(model.SerializeToString())
