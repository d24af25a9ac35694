"""Write results in one move: beside their place first, and renamed into it when they are complete. Also reads JSON."""

import contextlib
import glob
import hashlib
import json
import math
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fcn_deploy.errors import OutputError

_PARTIAL = ".partial-"
_OLD = ".old-"


@contextlib.contextmanager
def staged_directory(target: Path, *, marker: str, force: bool) -> Iterator[Path]:
    """Create a directory beside `target`, and rename it to `target` when the block ends without an error.

    With `force` an existing `target` is replaced if it holds a file named `marker`, or nothing. However the block
    ends, `target` is either unchanged or complete. Leftovers of killed runs are removed first.

    Raises:
        OutputError: `target` exists (without `force`), is not a bundle, or cannot be written.
    """
    place = target.resolve()
    with contextlib.ExitStack() as cleanup:
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            with _locked(place.parent):
                _sweep(place)
                _check_target(target, marker, force=force)
                staging = Path(tempfile.mkdtemp(prefix=f".{place.name}{_PARTIAL}", dir=place.parent))
                cleanup.callback(shutil.rmtree, staging, ignore_errors=True)
                # Held as long as this process lives: leftovers of killed runs have no lock.
                cleanup.enter_context(_locked(staging))
            yield staging
            for file in filter(Path.is_file, staging.rglob("*")):
                _flush(file)
            with _locked(place.parent):
                # Another process may have created it meanwhile.
                _check_target(target, marker, force=force)
                _publish(staging, place)
        except OSError as error:
            raise unwritable(target, error) from error


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a path beside `target` to write to, and rename it to `target` when the block ends without an error.

    Raises:
        OutputError: it cannot be written.
    """
    staging = target.with_name(f".{target.stem}.partial{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield staging
        _flush(staging)
        staging.replace(target)
    except OSError as error:
        raise unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)


@contextlib.contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Lock a directory, made if needed, for one run that writes several files into it; on Windows nothing is locked.

    Raises:
        OutputError: it cannot be made, or another run has locked it.
    """
    with contextlib.ExitStack() as held:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(directory, wait=sys.platform == "win32"))
        except BlockingIOError as error:
            raise OutputError(
                f"another run is writing to {directory}", remedy="Wait for it to end, or choose another --output."
            ) from error
        except OSError as error:
            raise unwritable(directory, error) from error
        yield


def check_writable(target: Path) -> None:
    """Check, before any work, that a file can be written to `target`.

    Raises:
        OutputError: its directory cannot be made or written to, or `target` is a directory.
    """
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    if target.is_dir() or not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        reason = "it is a directory" if target.is_dir() else f"{existing} is not a writable directory"
        raise OutputError(f"cannot write {target}: {reason}", remedy="Choose another path.")


def _check_target(target: Path, marker: str, *, force: bool) -> None:
    if not target.exists():
        return
    if not force:
        raise OutputError(f"{target} exists already", remedy="Pass --force to replace it, or another --output.")
    if not target.is_dir() or (any(target.iterdir()) and not (target / marker).is_file()):
        raise OutputError(
            f"{target} is not a bundle (it has no {marker}), so --force does not replace it",
            remedy="Choose another --output, or remove it yourself.",
        )


def unwritable(target: Path, error: OSError) -> OutputError:
    """Return the error for a `target` that the system refuses to write: the reason, the free space, and the remedy."""
    problem = f"cannot write {target}: {error.strerror or error}"
    if isinstance(error, FileExistsError | NotADirectoryError):
        return OutputError(problem, remedy="A part of this path is a file: choose another --output.")
    room = next((parent for parent in target.absolute().parents if parent.is_dir()), Path.cwd())
    free = f"{shutil.disk_usage(room).free / 1e6:.0f} MB free"
    return OutputError(f"{problem}; {free}", remedy="Choose a writable --output with enough free space.")


def _publish(staging: Path, place: Path) -> None:
    """Rename `staging` to `place`; an old directory is moved away first, and restored if anything goes wrong."""
    staging.chmod(0o755)
    if not place.exists():
        staging.rename(place)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{place.name}{_OLD}", dir=place.parent))
    try:
        place.rename(old / place.name)
        staging.rename(place)
    except BaseException:
        _restore(old, place)
        raise
    shutil.rmtree(old, ignore_errors=True)


def _restore(old: Path, place: Path) -> None:
    if (old / place.name).exists() and not place.exists():
        (old / place.name).rename(place)
    shutil.rmtree(old, ignore_errors=True)


def _sweep(place: Path) -> None:
    """Restore what a killed run had moved away, and remove what killed runs left; the kernel released their locks."""
    name = glob.escape(f".{place.name}")
    for old in place.parent.glob(f"{name}{_OLD}*"):
        _restore(old, place)
    for leftover in place.parent.glob(f"{name}{_PARTIAL}*"):
        with contextlib.suppress(BlockingIOError), _locked(leftover, wait=False):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(directory: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a directory; raises BlockingIOError if another process holds it and `wait` is False."""
    if sys.platform == "win32":
        # Directories cannot be locked there, so leftovers cannot be recognised.
        if not wait:
            raise BlockingIOError
        yield
        return
    import fcntl

    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(descriptor)


def _flush(file: Path) -> None:
    with file.open("r+b") as opened:
        os.fsync(opened.fileno())


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hex; raises OSError when it cannot be read."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def parse_json(data: bytes) -> Any:
    r"""Return the value of a JSON document in UTF-8; raises ValueError for anything else, such as NaN and 1e999.

    Unlike msgspec's decoder it reads `\udcff`, which stands for the byte 0xff of a path that is not UTF-8.
    """
    try:
        return json.loads(data.decode(), parse_constant=_finite, parse_float=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite(number: str) -> float:
    value = float(number)
    if not math.isfinite(value):
        raise ValueError(f"{number} is not a finite number")
    return value
