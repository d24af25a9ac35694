"""What TensorRT says while it works: kept, so that errors can quote it, and never printed."""

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

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
