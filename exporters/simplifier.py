"""Runs onnxsim in a process of its own, with bounds on memory and time: some graphs crash it, or never end.

The process imports neither PyTorch nor SymPy, which onnxsim would load if they are installed and does not need here.
"""

import math
import os
import subprocess
import sys

# The interpreter, ONNX and onnxsim take less than 0.2 GB on 2 cores; every further thread's stack takes 8 MB.
BASE_BYTES = 2 * 1024**3
# A graph without its weights: onnxsim holds several copies, and the constants that it folds.
BYTES_PER_BYTE = 256
# The graphs of this toolkit take half a second, of which starting takes the most.
LIMIT_S = 60.0
# A thread per core would take memory for stacks and buffers.
_FEW_THREADS = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
_FAILED = 3  # the exit code when the last line on stderr says why


class SimplifierError(Exception):
    """Why a graph was not simplified."""


def simplified(model: bytes) -> bytes:
    """Return a serialised model as onnxsim simplifies it.

    Raises:
        SimplifierError: onnxsim refuses it, crashes, or reaches a bound; says which.
    """
    # -P and the same path: the working directory is not searched unless this process searches it.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import work; work({memory_bound(model)})"
    try:
        done = subprocess.run(  # noqa: S603 - this interpreter
            [sys.executable, "-P", "-c", code], input=model, env=os.environ | _FEW_THREADS, capture_output=True,
            timeout=LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise SimplifierError(f"it took more than {LIMIT_S:g} s") from error
    if done.returncode == 0:
        return done.stdout
    lines = done.stderr.decode(errors="replace").strip().splitlines() or ["no message"]
    if done.returncode == _FAILED:
        raise SimplifierError(lines[-1])
    end = f"signal {-done.returncode}" if done.returncode < 0 else f"exit code {done.returncode}"
    raise SimplifierError(
        f"its process ended with {end} ({lines[-1]}); it may use {memory_bound(model) / 1e9:.1f} GB of memory"
    )


def memory_bound(model: bytes) -> int:
    """Return how many bytes the process may use for a model."""
    return BASE_BYTES + BYTES_PER_BYTE * len(model)


def work(memory: int) -> None:
    """Simplify the model on stdin, and write it to stdout: the process's own part."""
    _bound(memory)
    with os.fdopen(os.dup(sys.stdout.fileno()), "wb") as output:
        # What libraries print does not get into the model.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        try:
            output.write(_simplify(sys.stdin.buffer.read()))
        except MemoryError:
            _fail(f"it needs more than {memory / 1e9:.1f} GB of memory")
        except Exception as error:  # onnxsim's exceptions share no base below Exception
            _fail(" ".join(str(error).split()) or type(error).__name__)


def _simplify(data: bytes) -> bytes:
    for name in ("torch", "sympy"):
        sys.modules[name] = None  # type: ignore[assignment] # so that importing it fails
    import onnx
    import onnxsim

    found, _ = onnxsim.simplify(onnx.ModelProto.FromString(data))
    return bytes(found.SerializeToString())


def _fail(reason: str) -> None:
    sys.stderr.write(reason)
    sys.stderr.flush()
    os._exit(_FAILED)


def _bound(memory: int) -> None:
    """Limit the data and the time of this process, where the system can."""
    try:
        import resource
    except ImportError:  # Windows
        return
    # Also for a process that outlives the one that waits for it.
    seconds = math.ceil(LIMIT_S) * (os.cpu_count() or 1)
    resource.setrlimit(resource.RLIMIT_CPU, (seconds, seconds))
    kind = getattr(resource, "RLIMIT_DATA", resource.RLIMIT_AS)
    _, hard = resource.getrlimit(kind)
    resource.setrlimit(kind, (memory if hard == resource.RLIM_INFINITY else min(memory, hard), hard))
