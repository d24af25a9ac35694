"""CUDA streams and events through PyTorch, for work that any runtime puts on the same stream."""

from collections.abc import Callable
from typing import Any

import torch


def own_stream() -> int:
    """Make a stream PyTorch's current one and give its handle: a runtime that uses it is timed by PyTorch's events."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
    torch.cuda.set_stream(stream)
    return int(stream.cuda_stream)


def between_events_ns(launch: Callable[[], object]) -> int:
    """Nanoseconds the GPU needs for what `launch` puts on the current stream without waiting for it."""
    start: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    end: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    start.record()
    launch()
    end.record()
    end.synchronize()
    return int(start.elapsed_time(end) * 1e6)
