"""TensorRT's timing cache: what its builder measured, for the next build on the same GPU."""

from pathlib import Path
from typing import Any

from fcn_deploy.errors import InputFileError, UsageError
from fcn_deploy.runtime.tensorrt_flavour import Flavour
from fcn_deploy.runtime.tensorrt_log import worst
from fcn_deploy.staging import staged_file

_WARNING = 2


def require_effect(flavour: Flavour) -> None:
    """Refuse a timing cache where it would do nothing.

    Raises:
        UsageError: on RTX, which times no kernels while it builds.
    """
    if not flavour.times_kernels:
        raise UsageError(
            f"{flavour} has no timing cache: it times no kernels while it builds, and compiles them where they run",
            remedy="Leave --timing-cache out.",
        )


def load(flavour: Flavour, config: Any, path: Path) -> Any:
    """Attach the cache at `path` to a builder's configuration, a new one if there is none; returns it.

    TensorRT itself goes on with an empty cache when it cannot read one, and says so in its log only.

    Raises:
        InputFileError: the file is no timing cache of this TensorRT and GPU.
    """
    data = path.read_bytes() if path.is_file() else b""
    with flavour.log.listening() as said:
        cache = config.create_timing_cache(data)
        attached = cache is not None and config.set_timing_cache(cache, False)
    problem = worst(said, _WARNING) if data else ""
    if problem or not attached or (path.is_file() and not data):
        raise InputFileError(
            f"timing cache {path} ({len(data)} bytes) cannot be used: {problem or f'{flavour} refuses it'}",
            remedy="It is damaged, or of another TensorRT or GPU: remove it, or name a new file, to begin anew.",
        )
    return cache


def save(cache: Any, path: Path) -> None:
    """Write a cache, in one move."""
    with staged_file(path) as staging:
        staging.write_bytes(bytes(cache.serialize()))
