"""Which TensorRT is installed, and all that differs between `tensorrt` 10, `tensorrt` 11 and `tensorrt_rtx`.

The only module that names the two packages: everything else takes a `Flavour` and runs one code path.
"""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from mmap import mmap
from typing import Any

from fcn_deploy.choices import FlavourName
from fcn_deploy.errors import ProviderError, UsageError

_INFO = 3  # ILogger.Severity: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose
# The one verbose message that is worth keeping among thousands: what the built engine consists of.
LAYERS = "Layers:\n"


@dataclass(frozen=True)
class Message:
    """One line of TensorRT's log.

    Attributes:
        severity: 0 internal error, 1 error, 2 warning, 3 information, 4 the list of an engine's layers.
        text: as TensorRT words it.
    """

    severity: int
    text: str


class Log:
    """The process's one TensorRT logger.

    Attributes:
        logger: what TensorRT's constructors take.
    """

    def __init__(self, trt: Any) -> None:
        self._kept: list[list[Message]] = []
        self._lock = threading.Lock()
        self.logger = _logger(trt, self)

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[Message]]:
        """A list of what is said while the block runs."""
        heard: list[Message] = []
        with self._lock:
            self._kept.append(heard)
        try:
            yield heard
        finally:
            with self._lock:
                self._kept = [kept for kept in self._kept if kept is not heard]

    def add(self, severity: int, text: str) -> None:
        """Keep a message for everyone who listens; TensorRT calls from threads of its own."""
        if severity <= _INFO or text.startswith(LAYERS):
            with self._lock:
                for kept in self._kept:
                    kept.append(Message(severity, text))


def worst(messages: list[Message], up_to: int = 1) -> str:
    """The errors among `messages`, or all up to another severity, each once, in one line; "" when there are none."""
    return "; ".join(dict.fromkeys(" ".join(m.text.split()) for m in messages if m.severity <= up_to))


def _logger(trt: Any, log: Log) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # TensorRT's bindings have no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(int(severity), message)

    return Logger()


OLDEST = {"tensorrt": 10, "tensorrt-rtx": 1}
_MEMBER = "SM"


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT.

    Attributes:
        name: which of the two.
        version: of its package.
        trt: the package itself.
        log: what it says; TensorRT takes one logger per process and keeps to the first.
    """

    name: FlavourName
    version: str
    trt: Any
    log: Log

    def __str__(self) -> str:
        return f"{'TensorRT' if self.name is FlavourName.TENSORRT else 'TensorRT-RTX'} {self.version}"

    @property
    def builds_without_gpu(self) -> bool:
        """Whether engines are built for named GPUs, on a machine that may have none."""
        return self.name is FlavourName.RTX

    @property
    def times_kernels(self) -> bool:
        """Whether a build tries kernels out, which a timing cache remembers; RTX compiles where the engine runs."""
        return self.name is FlavourName.TENSORRT

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities that can be named, e.g. `8.9`, ascending; none where the GPU at hand decides."""
        if not self.builds_without_gpu:
            return ()
        names = [name for name in self.trt.ComputeCapability.__members__ if name.startswith(_MEMBER)]
        numbers = sorted(int(name.removeprefix(_MEMBER)) for name in names)
        return tuple(f"{number // 10}.{number % 10}" for number in numbers)

    def capability(self, text: str) -> Any:
        """TensorRT-RTX's own name for a compute capability.

        Raises:
            UsageError: it builds for no such GPU.
        """
        if text not in self.capabilities:
            raise UsageError(
                f"compute capability {text}: {self} builds for {', '.join(self.capabilities)}",
                remedy="Pass some of these to --compute-capability, separated by commas.",
            )
        return self.trt.ComputeCapability.__members__[_MEMBER + text.replace(".", "")]

    def build_targets(self, capabilities: tuple[str, ...]) -> list[Any]:
        """What a builder is told to build for: the capabilities named, or the GPU at hand; TensorRT is told nothing."""
        if not self.builds_without_gpu:
            return []
        return [self.capability(text) for text in capabilities] or [self.trt.ComputeCapability.CURRENT]

    def network_flags(self) -> int:
        """Flags of a strongly typed network: TensorRT 10 has to be asked, 11 and RTX know no other."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def context(self, engine: Any, *, cuda_graph: bool) -> Any:
        """An execution context; RTX captures a CUDA graph by itself when it is told to here."""
        if not (cuda_graph and self.captures_by_itself):
            return engine.create_execution_context()
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)

    @property
    def captures_by_itself(self) -> bool:
        """Whether CUDA graphs are the runtime's own business rather than its caller's."""
        return self.name is FlavourName.RTX

    def invalidity(self, plan: mmap) -> str | None:
        """Why RTX says that a plan cannot run here, from its header alone; None when it can, or nobody can say."""
        if self.name is FlavourName.TENSORRT:
            return None
        _, reasons = self.trt.Runtime(self.log.logger).get_engine_validity(plan)
        known = self.trt.EngineInvalidityDiagnostics.__members__.items()
        return ", ".join(name for name, bit in known if int(bit) & int(reasons)) or None


def find_flavour(name: FlavourName | None = None) -> Flavour:
    """The TensorRT of that name; without one, whichever is installed, TensorRT first.

    Raises:
        ProviderError: it is not installed, cannot be loaded, or is too old.
    """
    if name is not None:
        return _opened(name)
    for candidate in FlavourName:
        if _is_installed(candidate):
            return _opened(candidate)
    raise ProviderError(
        "neither tensorrt nor tensorrt_rtx is installed",
        remedy="pip install 'fcn-deploy[tensorrt]' on the machine with the GPU that is to run the engine, or "
        "pip install 'fcn-deploy[tensorrt-rtx]' to build for RTX GPUs anywhere.",
    )


def _is_installed(name: FlavourName) -> bool:
    from importlib.util import find_spec

    return find_spec(_package(name)) is not None


def _package(name: FlavourName) -> str:
    return name.replace("-", "_")


@cache
def _opened(name: FlavourName) -> Flavour:
    if not _is_installed(name):
        raise ProviderError(f"{_package(name)} is not installed", remedy=f"pip install 'fcn-deploy[{name}]'")
    try:
        module = _imported(name)
    except (ImportError, OSError) as error:
        raise ProviderError(
            f"{_package(name)} is installed but cannot be loaded: {error}",
            remedy=f"pip install --force-reinstall 'fcn-deploy[{name}]'",
        ) from error
    version = str(module.__version__)
    if int(version.split(".", maxsplit=1)[0]) < OLDEST[name]:
        raise ProviderError(
            f"{_package(name)} {version} is older than {OLDEST[name]}",
            remedy=f"pip install --upgrade 'fcn-deploy[{name}]'",
        )
    return Flavour(name, version, module, Log(module))


def _imported(name: FlavourName) -> Any:
    if name is FlavourName.RTX:
        import tensorrt_rtx

        return tensorrt_rtx
    import tensorrt

    return tensorrt
