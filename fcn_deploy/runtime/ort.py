"""Run models with ONNX Runtime; only this module imports it.

ONNX Runtime falls back to the CPU, with at most a warning, when the requested provider cannot be loaded. Here that is
an error: either the requested provider runs every node, or nothing runs.
"""

import contextlib
import functools
import io
import logging
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper

from fcn_deploy.choices import Provider
from fcn_deploy.errors import BundleError, ProviderError
from fcn_deploy.model_info import TensorSpec
from fcn_deploy.onnx_file import read_skeleton
from fcn_deploy.runtime import nvidia
from fcn_deploy.runtime.base import Arrays, Bound, Runner
from fcn_deploy.runtime.ort_options import PROVIDER_NAMES, OrtOptions
from fcn_deploy.runtime.session_cache import GRAPH_FILE, WEIGHTS_FILE, CacheError, PreparedModel

# A model of one node, to try a provider with.
_PROBE = '<ir_version: 10, opset_import: ["": 18]> probe (float[1,1,4,4] x) => (float[1,1,4,4] y) { y = Relu (x) }'
_log = logging.getLogger(__name__)
HALVES = frozenset({TensorProto.FLOAT16, TensorProto.BFLOAT16})


def computes_in_half(skeleton: bytes) -> bool:
    """Return whether any weight of a serialised model is of float16 or bfloat16."""
    return any(tensor.data_type in HALVES for tensor in onnx.ModelProto.FromString(skeleton).graph.initializer)


def widened(skeleton: bytes) -> bytes:
    """Return the same graph computed in float32, with every node's result rounded to the type it had.

    Its inputs and outputs stay as they are.
    """
    # Not every exporter states the types of all values.
    model = onnx.shape_inference.infer_shapes(onnx.ModelProto.FromString(skeleton))
    graph = model.graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*graph.input, *graph.value_info, *graph.output)}
    halves = [tensor.name for tensor in graph.initializer if tensor.data_type in HALVES]
    halves += [value.name for value in graph.input if types[value.name] in HALVES]
    wide = {name: f"{name}/wide" for name in halves}
    nodes = [_cast(name, wide[name], TensorProto.FLOAT) for name in halves]
    for node in model.graph.node:
        node.input[:] = [wide.get(name, name) for name in node.input]
        nodes.append(node)
        for index, name in enumerate(node.output):
            if types.get(name) in HALVES:
                wide[name] = f"{name}/wide"
                if node.op_type != "Cast":  # a Cast rounds already
                    node.output[index] = f"{name}/exact"
                    nodes.append(_cast(f"{name}/exact", name, types[name]))
                nodes.append(_cast(name, wide[name], TensorProto.FLOAT))
    del model.graph.value_info[:], model.graph.node[:]
    model.graph.node.extend(nodes)
    return bytes(model.SerializeToString())


def _cast(source: str, target: str, to: int) -> onnx.NodeProto:
    return helper.make_node("Cast", [source], [target], name=f"{source}/cast", to=to)


# Node names by the execution provider that runs them.
NodePlacement = Mapping[str, tuple[str, ...]]


def placement_of(session: Any) -> NodePlacement:
    """Return where ONNX Runtime's `session` placed every node, before it fuses any."""
    found: dict[str, tuple[str, ...]] = {}
    for part in session.get_provider_graph_assignment_info():
        names = tuple(node.name or node.op_type for node in part.get_nodes())
        found[part.ep_name] = (*found.get(part.ep_name, ()), *names)
    return found


def require_placement(provider: Provider, running: Sequence[str], placement: NodePlacement) -> None:
    """Check that `provider` is `running`, among the session's providers, and runs every node of its `placement`.

    Raises:
        ProviderError: the provider is missing, or some nodes run elsewhere; names the first five.
    """
    wanted = PROVIDER_NAMES[provider]
    if wanted not in running:
        raise ProviderError(
            f"provider {provider}: ONNX Runtime fell back to {', '.join(running)}",
            remedy="Run `fcn-deploy doctor`, or pass --provider cpu.",
        )
    elsewhere = [f"{name} on {where}" for where, names in placement.items() if where != wanted for name in names]
    if elsewhere:
        raise ProviderError(
            f"provider {provider} does not run {len(elsewhere)} nodes: {', '.join(elsewhere[:5])}",
            remedy="Export with an older --opset, or pass --provider cpu.",
        )


_SILENT = 4  # the log would repeat what exceptions report
_FOLDER_KEY = "session.model_external_initializers_file_folder_path"
_WEIGHTS_FILE_KEY = "session.optimized_model_external_initializers_file_name"
_WEIGHTS_SIZE_KEY = "session.optimized_model_external_initializers_min_size_in_bytes"
_LEAST_WEIGHT_BYTES = 1024
_SHARED_ARENA_KEY = "session.use_env_allocators"
_AS_REQUESTED = 1
_arena_lock = threading.Lock()
# -1 leaves them to ONNX Runtime.
_ARENA_SIZES = ("initial_chunk_size_bytes", "max_dead_bytes_per_chunk", "initial_growth_chunk_size_bytes")
_NO_SYNCHRONIZATION_KEY = "disable_synchronize_execution_providers"
# The other types have the names that NumPy gives them.
_DTYPES = {"float": "float32", "double": "float64"}


@contextlib.contextmanager
def _refusals(path: Path) -> Iterator[None]:
    """Raise what ONNX Runtime, or what prepares the model for it, raises on the model in `path` as a BundleError."""
    try:
        yield
    except Exception as error:  # ONNX Runtime's exceptions share no base below Exception
        raise BundleError(f"ONNX Runtime refuses {path}: {error}", remedy="Export the model again.") from error


class OrtRunner(Runner):
    """Runs an ONNX file with ONNX Runtime; its weights are mapped from the file, not copied through protobuf.

    Args:
        path: the model.
        options: where and how to run it.
        profile: prefix of the file that ONNX Runtime writes its profile to; None profiles nothing.
        optimized: file that ONNX Runtime writes the graph to after its own optimisations; None writes none.
        prepared: where a CPU's session is opened from, and kept for the next time; None opens it from `path` alone.

    Attributes:
        placement: the nodes by provider, as reported by the session; known once the runner is open.

    Raises:
        ProviderError: on opening, when the requested provider would not run every node.
        BundleError: on opening or running, when ONNX Runtime refuses the model.
    """

    def __init__(
        self,
        path: Path,
        options: OrtOptions | None = None,
        profile: Path | None = None,
        optimized: Path | None = None,
        prepared: PreparedModel | None = None,
    ) -> None:
        self.path = path
        self.options = options or OrtOptions()
        self.placement: NodePlacement = {}
        self.name = self._plain_name = f"ONNX Runtime {ort.__version__} {self.options.provider.upper()}"
        self._profile, self._optimized, self._prepared = profile, optimized, prepared
        self._session: ort.InferenceSession | None = None

    def _open(self) -> None:
        provider = self.options.provider
        require_provider(provider)
        model = read_skeleton(self.path)
        with _refusals(self.path):
            computable = self._computable(model.data)
            session = self._prepared_session(computable, model.folder)
            if session is None:
                session = _session(computable, self.options, self._session_options(model.folder))
        self.placement = placement_of(session)
        require_placement(provider, session.get_providers(), self.placement)
        self._session = session
        self.inputs = tuple(_spec(value) for value in session.get_inputs())

    def _session_options(self, folder: Path) -> ort.SessionOptions:
        """Return new options for a session whose weights are in files of `folder`."""
        options = _session_options(self.options)
        options.add_session_config_entry(_FOLDER_KEY, str(folder))
        if self._profile is not None:
            options.enable_profiling = True
            options.profile_file_prefix = str(self._profile)
        if self._optimized is not None:
            options.optimized_model_filepath = str(self._optimized)
        return options

    def _prepared_session(self, model: bytes, weights: Path) -> ort.InferenceSession | None:
        """Return the session that is in the cache, or prepare it; None if that is not possible or not worthwhile."""
        if self._prepared is None or self.options.provider is not Provider.CPU or self._profile or self._optimized:
            return None
        cache, key = self._prepared.cache, self._prepared.key(ort.__version__, self.options)
        try:
            folder = cache.find(key)
            if folder is not None:
                return _mapped_session(folder / GRAPH_FILE, self.options)
            with cache.new_entry(key, self.path, self._prepared) as folder:
                session = _prepare(model, self.options, self._session_options(weights), folder)
        except Exception as error:  # whatever is wrong with the cache, the model itself can still be opened
            if not isinstance(error, CacheError):
                cache.discard(key)
            reason = (str(error).splitlines() or [type(error).__name__])[0]
            _log.warning("the session of %s is not a prepared one: %s", self.path, reason)
            return None
        _log.info("the session of %s was prepared for this machine, in %s", self.path, cache.folder / key)
        return session

    def _computable(self, skeleton: bytes) -> bytes:
        """Return the model in types that the provider computes in, and note it in the runner's name."""
        if self.options.provider is not Provider.CPU or not computes_in_half(skeleton):
            return skeleton
        self.name = f"{self._plain_name}, half precision by rounding"
        return widened(skeleton)

    def _run(self, feeds: dict[str, npt.NDArray[Any]]) -> dict[str, npt.NDArray[Any]]:
        session = self._opened()
        names = [output.name for output in session.get_outputs()]
        with _refusals(self.path):
            return dict(zip(names, session.run(names, feeds), strict=True))

    def _close(self) -> None:
        self._session = None

    def bind(self) -> "OrtBinding":
        """Return the model with fixed buffers for inputs and outputs on the device that runs it."""
        session = self._opened()
        with _refusals(self.path):
            return OrtBinding(session, self.options.provider, self.path)

    def end_profiling(self) -> Path:
        """Finish the profile; returns the file it was written to."""
        return Path(self._opened().end_profiling())

    def _opened(self) -> ort.InferenceSession:
        if self._session is None:
            raise RuntimeError("the runner is not open: use it as a context manager")
        return self._session


class OrtBinding(Bound):
    """A session with fixed buffers, from `OrtRunner.bind`; valid while the runner is open."""

    def __init__(self, session: ort.InferenceSession, provider: Provider, path: Path) -> None:
        device = "cpu" if provider is Provider.CPU else "cuda"
        self._session, self._path = session, path
        self._how = ort.RunOptions()
        if provider is not Provider.CPU:
            # Otherwise a launch waits for its end, and the two cannot be timed separately.
            self._how.add_run_config_entry(_NO_SYNCHRONIZATION_KEY, "1")
        self._binding = session.io_binding()
        self._inputs = {value.name: _allocate(value, device) for value in session.get_inputs()}
        self._outputs = {value.name: _allocate(value, device) for value in session.get_outputs()}
        for name, value in self._inputs.items():
            self._binding.bind_ortvalue_input(name, value)
        for name, value in self._outputs.items():
            self._binding.bind_ortvalue_output(name, value)

    def upload(self, feeds: Arrays) -> None:
        """Copy `feeds` to the input buffers."""
        for name, value in self._inputs.items():
            value.update_inplace(np.ascontiguousarray(feeds[name]))
        self._binding.synchronize_inputs()

    def launch(self) -> None:
        """Begin to compute the outputs."""
        with _refusals(self._path):
            self._session.run_with_iobinding(self._binding, self._how)

    def wait(self) -> None:
        """Wait for the outputs."""
        self._binding.synchronize_outputs()

    def download(self) -> dict[str, npt.NDArray[Any]]:
        """Copy the outputs to the host."""
        return {name: value.numpy() for name, value in self._outputs.items()}


def require_provider(provider: Provider) -> None:
    """Check with a model of one node that `provider` itself would run; raises ProviderError with what does not load."""
    clashing = nvidia.clashing_wheels()
    if clashing:
        both = " and ".join(f"{name} {version}" for name, version in clashing.items())
        raise ProviderError(
            f"{both} are installed over each other, so which of them runs is undefined",
            remedy="pip uninstall -y onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
        )
    if PROVIDER_NAMES[provider] not in ort.get_available_providers():
        raise ProviderError(
            f"provider {provider}: this onnxruntime build has only {', '.join(ort.get_available_providers())}",
            remedy="pip uninstall onnxruntime, then pip install onnxruntime-gpu.",
        )
    problem = provider_problem(provider)
    if problem is not None:
        raise ProviderError(
            f"provider {provider} cannot run here: {problem}",
            remedy=f"{nvidia.remedy(problem)} Or pass --provider cpu. `fcn-deploy doctor` checks this.",
        )


def provider_problem(provider: Provider) -> str | None:
    """Return why `provider` cannot run a model here, or None when it can."""
    if provider is Provider.CPU:
        return None
    preload_libraries()
    ort.set_default_logger_severity(_SILENT)
    try:
        _session(onnx.parser.parse_model(_PROBE).SerializeToString(), OrtOptions(provider))
    except Exception as error:  # ONNX Runtime's exceptions share no base below Exception
        # ONNX Runtime reports only the fall-back; the driver and the loader report the reason.
        driver = nvidia.driver_problem(nvidia.driver_cuda_version(), _built_for_cuda())
        return driver or nvidia.provider_library_problem(provider) or str(error)
    return None


def preload_libraries() -> None:
    """Load CUDA's, cuDNN's and TensorRT's libraries from pip's packages, if they are installed."""
    # It prints missing libraries, which provider_problem reports with a remedy.
    with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(AttributeError):
        ort.preload_dlls()
    nvidia.preload_wheels()
    nvidia.preload_tensorrt()


def available_providers() -> tuple[str, ...]:
    """Return ONNX Runtime's names of the providers of this build, whether or not they can be loaded."""
    return tuple(ort.get_available_providers())


def _built_for_cuda() -> nvidia.Version | None:
    from onnxruntime.capi import build_and_package_info

    version = getattr(build_and_package_info, "cuda_version", "")
    major, _, minor = version.partition(".")
    return (int(major), int(minor or 0)) if major.isdigit() else None


def _session(model: bytes, options: OrtOptions, session: ort.SessionOptions | None = None) -> ort.InferenceSession:
    providers = [(PROVIDER_NAMES[options.provider], options.provider_options())]
    # Without enable_fallback=0 the Python side catches a provider's error, prints it, and runs on the CPU.
    return ort.InferenceSession(model, session or _session_options(options), providers=providers, enable_fallback=0)


def _mapped_session(graph: Path, options: OrtOptions) -> ort.InferenceSession:
    """Open a graph that ONNX Runtime has optimised; its weights are mapped."""
    session = _session_options(replace(options, optimizations=False))
    # It would reserve 0.35 GB more for an FCN's maps, and gains no time.
    session.enable_mem_pattern = False
    if options.arena:
        with _arena_lock:
            shared = _make_shared_arena()
        if shared:
            session.add_session_config_entry(_SHARED_ARENA_KEY, "1")
    return ort.InferenceSession(graph, session, providers=[PROVIDER_NAMES[options.provider]], enable_fallback=0)


@functools.cache
def _make_shared_arena() -> bool:
    """Make the memory that prepared sessions of this process share; it grows by what is needed, to no power of two.

    ONNX Runtime keeps it until the process ends. Returns False where it cannot make any; each session has its own then.
    """
    settings = dict.fromkeys(_ARENA_SIZES, -1) | {"arena_extend_strategy": _AS_REQUESTED, "max_mem": 0}
    memory = ort.OrtMemoryInfo("Cpu", ort.OrtAllocatorType.ORT_ARENA_ALLOCATOR, 0, ort.OrtMemType.DEFAULT)
    try:
        ort.create_and_register_allocator(memory, ort.OrtArenaCfg(settings))
    except Exception:  # ONNX Runtime's exceptions share no base below Exception
        _log.warning("prepared sessions share no memory", exc_info=True)
        return False
    return True


def _prepare(model: bytes, options: OrtOptions, session: ort.SessionOptions, folder: Path) -> ort.InferenceSession:
    """Write the optimised graph of `model` to `folder` and return its session.

    If it does not compute the same to the bit, the folder is left empty, and the model's own session is returned.
    """
    session.optimized_model_filepath = str(folder / GRAPH_FILE)
    session.add_session_config_entry(_WEIGHTS_FILE_KEY, WEIGHTS_FILE)
    session.add_session_config_entry(_WEIGHTS_SIZE_KEY, str(_LEAST_WEIGHT_BYTES))
    ordinary = _session(model, options, session)
    prepared = _mapped_session(folder / GRAPH_FILE, options)
    feeds = {spec.name: _noise(spec) for spec in map(_spec, ordinary.get_inputs())}
    expected, found = ordinary.run(None, feeds), prepared.run(None, feeds)
    if all(one.tobytes() == other.tobytes() for one, other in zip(expected, found, strict=True)):
        return prepared
    for file in folder.iterdir():
        file.unlink()
    return ordinary


def _noise(spec: TensorSpec) -> npt.NDArray[Any]:
    """Return noise in the range of images."""
    return np.random.default_rng(0).uniform(-120, 150, spec.shape).astype(spec.dtype)


def _session_options(options: OrtOptions) -> ort.SessionOptions:
    session = ort.SessionOptions()
    session.log_severity_level = _SILENT
    session.intra_op_num_threads = options.threads or _allowed_threads()
    if not options.optimizations:
        session.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session.enable_cpu_mem_arena = session.enable_mem_pattern = options.arena
    for key, value in options.session_config().items():
        session.add_session_config_entry(key, value)
    return session


def _allowed_threads() -> int:
    """Return the number of cores if this process may not use all; else 0, so that ONNX Runtime decides.

    By default it binds one thread to each core of the machine, even if the process is bound to fewer cores.
    """
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 0
    return allowed if allowed < (os.cpu_count() or 1) else 0


def _spec(value: Any) -> TensorSpec:
    name = value.type.removeprefix("tensor(").removesuffix(")")
    return TensorSpec(value.name, tuple(value.shape), _DTYPES.get(name, name))


def _allocate(value: Any, device: str) -> ort.OrtValue:
    spec = _spec(value)
    return ort.OrtValue.ortvalue_from_shape_and_type(list(spec.shape), np.dtype(spec.dtype), device, 0)
