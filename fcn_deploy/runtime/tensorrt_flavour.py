"""Find the installed TensorRT; everything that differs between `tensorrt` 10, `tensorrt` 11 and `tensorrt_rtx`.

Only this module imports the two packages: everything else uses a `Flavour` and runs one code path.
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
from fcn_deploy.installation import missing_packages, require_extra

_INFO = 3  # ILogger.Severity: 0 internal error, 1 error, 2 warning, 3 info, 4 verbose
# Only this verbose message is kept: the list of the built engine's layers.
LAYERS = "Layers:\n"
OLDEST = {FlavourName.TENSORRT: 10, FlavourName.RTX: 1}
_MEMBER = "SM"


@dataclass(frozen=True)
class Message:
    """One line of TensorRT's log."""

    severity: int  # 0 internal error, 1 error, 2 warning, 3 information, 4 the list of an engine's layers
    text: str  # TensorRT's message


class Log:
    """The process's one TensorRT logger.

    Attributes:
        logger: for TensorRT's constructors.
    """

    def __init__(self, trt: Any) -> None:
        self._lists: list[list[Message]] = []
        self._lock = threading.Lock()
        self.logger = _logger(trt, self)

    @contextlib.contextmanager
    def listening(self) -> Iterator[list[Message]]:
        """Collect the messages that arrive while the block runs."""
        messages: list[Message] = []
        with self._lock:
            self._lists.append(messages)
        try:
            yield messages
        finally:
            with self._lock:
                self._lists = [other for other in self._lists if other is not messages]

    def add(self, severity: int, text: str) -> None:
        """Keep a message for every listener; TensorRT calls this from its own threads."""
        if severity <= _INFO or text.startswith(LAYERS):
            with self._lock:
                for messages in self._lists:
                    messages.append(Message(severity, text))


def worst(messages: list[Message], up_to: int = 1) -> str:
    """Join the errors among `messages`, or all up to another severity, each once, in one line; "" if there are none."""
    return "; ".join(dict.fromkeys(" ".join(m.text.split()) for m in messages if m.severity <= up_to))


def _logger(trt: Any, log: Log) -> Any:
    class Logger(trt.ILogger):  # type: ignore[misc] # TensorRT's bindings have no types
        def __init__(self) -> None:
            trt.ILogger.__init__(self)

        def log(self, severity: Any, message: str) -> None:
            log.add(int(severity), message)

    return Logger()


@dataclass(frozen=True)
class Flavour:
    """An installed TensorRT."""

    name: FlavourName  # which of the two
    version: str  # of its package
    trt: Any  # the package itself
    log: Log  # its log; TensorRT accepts one logger per process and keeps the first

    def __str__(self) -> str:
        return f"{'TensorRT' if self.name is FlavourName.TENSORRT else 'TensorRT-RTX'} {self.version}"

    @property
    def builds_without_gpu(self) -> bool:
        """Whether engines are built for named GPUs, on a machine that may have none."""
        return self.name is FlavourName.RTX

    @property
    def times_kernels(self) -> bool:
        """Whether a build times kernels, which a timing cache stores; RTX compiles where the engine runs."""
        return self.name is FlavourName.TENSORRT

    @property
    def capabilities(self) -> tuple[str, ...]:
        """The compute capabilities to choose from, e.g. `8.9`, ascending; none where the machine's GPU decides."""
        if not self.builds_without_gpu:
            return ()
        names = [name for name in self.trt.ComputeCapability.__members__ if name.startswith(_MEMBER)]
        numbers = sorted(int(name.removeprefix(_MEMBER)) for name in names)
        return tuple(f"{number // 10}.{number % 10}" for number in numbers)

    def capability(self, text: str) -> Any:
        """Return TensorRT-RTX's own value for a compute capability; raises UsageError if it builds for no such GPU."""
        if text not in self.capabilities:
            raise UsageError(
                f"compute capability {text}: {self} builds for {', '.join(self.capabilities)}",
                remedy="Pass some of these to --compute-capability, separated by commas.",
            )
        return self.trt.ComputeCapability.__members__[_MEMBER + text.replace(".", "")]

    def build_targets(self, capabilities: tuple[str, ...]) -> list[Any]:
        """Return the builder's targets: the capabilities named, or this machine's GPU; for TensorRT none."""
        if not self.builds_without_gpu:
            return []
        return [self.capability(text) for text in capabilities] or [self.trt.ComputeCapability.CURRENT]

    def network_flags(self) -> int:
        """Return the flags of a strongly typed network: TensorRT 10 needs one, 11 and RTX are always strongly typed."""
        flag = getattr(self.trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
        return 0 if flag is None else 1 << int(flag)

    def context(self, engine: Any, *, cuda_graph: bool) -> Any:
        """Create an execution context; for RTX, this turns its own capture of CUDA graphs on or off."""
        if not (cuda_graph and self.captures_by_itself):
            return engine.create_execution_context()
        config = engine.create_runtime_config()
        config.cuda_graph_strategy = self.trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
        return engine.create_execution_context(config)

    @property
    def captures_by_itself(self) -> bool:
        """Whether the runtime captures CUDA graphs by itself, rather than its caller."""
        return self.name is FlavourName.RTX

    def invalidity(self, plan: mmap) -> str | None:
        """Return why RTX cannot run a plan here, from its header alone; None when it can, or for TensorRT."""
        if self.name is FlavourName.TENSORRT:
            return None
        _, reasons = self.trt.Runtime(self.log.logger).get_engine_validity(plan)
        known = self.trt.EngineInvalidityDiagnostics.__members__.items()
        return ", ".join(name for name, bit in known if int(bit) & int(reasons)) or None


def find_flavour(name: FlavourName | None = None) -> Flavour:
    """Return the TensorRT of that name; without a name, the one that is installed, TensorRT first.

    Raises:
        ProviderError: it is not installed, cannot be loaded, or is too old.
    """
    if name is not None:
        return _opened(name)
    for candidate in FlavourName:
        if not missing_packages([_package(candidate)]):
            return _opened(candidate)
    raise ProviderError(
        "neither tensorrt nor tensorrt_rtx is installed",
        remedy="pip install 'fcn-deploy[tensorrt]' on the machine with the GPU that is to run the engine, or "
        "pip install 'fcn-deploy[tensorrt-rtx]' to build for RTX GPUs anywhere.",
    )


def _package(name: FlavourName) -> str:
    return name.replace("-", "_")


@cache
def _opened(name: FlavourName) -> Flavour:
    require_extra(f"flavour {name}", name, [_package(name)], error=ProviderError)
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
