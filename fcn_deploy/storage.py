"""Write results in one move: beside their place first, and renamed into it when they are complete. Also reads JSON."""

import contextlib
import errno
import glob
import hashlib
import json
import math
import os
import re
import secrets
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import Any

from fcn_deploy.errors import BundleError, OutputError

_PARTIAL = ".partial-"
_OLD = ".old-"
_MAX_SUFFIX = 20
_STAGED_FILE = re.compile(r"\.[0-9a-f]{16}\.partial(\..*)?")
# Returns the relative POSIX names of the files that the command wrote into a directory; raises BundleError if it did
# not write the directory.
OwnFiles = Callable[[Path], Collection[str]]


@contextlib.contextmanager
def staged_directory(target: Path, *, own_files: OwnFiles, force: bool) -> Iterator[Path]:
    """Create a directory beside `target`, and rename it to `target` when the block ends without an error.

    With `force` an existing `target` is replaced if it is empty, or holds no other files than `own_files` returns.
    However the block ends, `target` is either unchanged or complete. Leftovers of killed runs are removed first.

    Raises:
        OutputError: `target` exists (without `force`), holds files of the user's, or cannot be written.
    """
    with contextlib.ExitStack() as cleanup:
        try:
            place = _resolved(target)
            place.parent.mkdir(parents=True, exist_ok=True)
            with _locked(place.parent):
                _sweep(place)
                _check_target(target, own_files, force=force)
                staging = Path(tempfile.mkdtemp(prefix=f".{place.name}{_PARTIAL}", dir=place.parent))
                cleanup.callback(shutil.rmtree, staging, ignore_errors=True)
                # Held as long as this process lives: leftovers of killed runs have no lock.
                cleanup.enter_context(_locked(staging))
            yield staging
            for file in filter(Path.is_file, staging.rglob("*")):
                _flush(file)
            with _locked(place.parent):
                # Another process may have created it meanwhile.
                _check_target(target, own_files, force=force)
                _publish(staging, place)
        except OSError as error:
            raise unwritable(target, error) from error


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """Yield a new, empty file beside `target`, and rename it to `target` when the block ends without an error.

    Its name cannot be guessed, so that nobody who may write to the directory can put a link in its place.

    Raises:
        OutputError: it cannot be written, or `target` is a device, a pipe or another thing that is no regular file.
    """
    check_regular(target)
    with contextlib.ExitStack() as cleanup:
        try:
            # As for directories, a link stays, and the file it leads to is replaced.
            place = _resolved(target)
            place.parent.mkdir(parents=True, exist_ok=True)
            staging = cleanup.enter_context(_created_beside(place))
            yield staging
            _flush(staging)
            staging.replace(place)
        except OSError as error:
            raise unwritable(target, error) from error


@contextlib.contextmanager
def _created_beside(place: Path) -> Iterator[Path]:
    """Create a file under a name that nobody can guess; it is removed at the end of the block, unless it was renamed.

    It is locked as long as this process lives, where its file system has locks: leftovers of killed runs are not.
    """
    # Some writers choose the format by the suffix.
    suffix = place.suffix if len(place.suffix) <= _MAX_SUFFIX else ""
    while True:
        staging = place.with_name(f".{secrets.token_hex(8)}.partial{suffix}")
        descriptor = os.open(staging, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        with contextlib.suppress(OSError):
            _lock(descriptor, wait=True)
        # Before it was locked, another process may have taken it for a leftover.
        if staging.exists():
            break
        os.close(descriptor)
    try:
        yield staging
    finally:
        os.close(descriptor)
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)


@contextlib.contextmanager
def sole_writer(directory: Path) -> Iterator[None]:
    """Lock a directory, made if needed, for one run that writes several files into it; on Windows nothing is locked.

    Unfinished files of killed runs are removed.

    Raises:
        OutputError: it cannot be made, or another run has locked it.
    """
    with contextlib.ExitStack() as held:
        try:
            directory.mkdir(parents=True, exist_ok=True)
            held.enter_context(_locked(directory.resolve(), wait=sys.platform == "win32"))
            _sweep_files(directory)
        except BlockingIOError as error:
            raise OutputError(
                f"another run is writing to {directory}", remedy="Wait for it to end, or choose another --output."
            ) from error
        except OSError as error:
            raise unwritable(directory, error) from error
        yield


def check_regular(target: Path) -> None:
    """Check that a file may be written to `target`: nothing is there, or a regular file.

    Raises:
        OutputError: a directory, a device, a pipe, or a link to itself is there.
    """
    try:
        mode = target.stat().st_mode
    except (FileNotFoundError, NotADirectoryError):
        return
    except OSError as error:
        raise unwritable(target, error) from error
    if not stat.S_ISREG(mode):
        kind = "a directory" if stat.S_ISDIR(mode) else "a device or a pipe"
        raise OutputError(f"cannot write {target}: it is {kind}", remedy="Choose the path of a regular file.")


def check_writable(target: Path) -> None:
    """Check, before any work, that a file can be written to `target`; unfinished files of killed runs are removed.

    Raises:
        OutputError: its directory cannot be made or written to, or `target` is not a regular file.
    """
    check_regular(target)
    existing = next(parent for parent in target.absolute().parents if parent.exists())
    if not existing.is_dir() or not os.access(existing, os.W_OK | os.X_OK):
        raise OutputError(
            f"cannot write {target}: {existing} is not a writable directory", remedy="Choose another path."
        )
    if target.parent.is_dir():
        _sweep_files(target.parent)


def _resolved(target: Path) -> Path:
    """Return `target` without links; raises OSError for a link to itself."""
    try:
        return target.resolve()
    except RuntimeError as error:
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP)) from error


def _check_target(target: Path, own_files: OwnFiles, *, force: bool) -> None:
    if not target.exists():
        return
    if not force:
        raise OutputError(f"{target} exists already", remedy="Pass --force to replace it, or another --output.")
    if problem := _unlisted_content(target, own_files):
        raise OutputError(
            f"--force does not replace {target}: {problem}", remedy="Choose another --output, or remove it yourself."
        )


def _unlisted_content(target: Path, own_files: OwnFiles) -> str | None:
    """Return what is in a directory that the command did not write there, or None."""
    if not target.is_dir():
        return "it is not a directory"
    if not any(target.iterdir()):
        return None
    try:
        known = own_files(target)
    except BundleError as error:
        return error.problem
    held = (path for path in target.rglob("*") if path.is_symlink() or not path.is_dir())
    unlisted = next((name for path in held if (name := path.relative_to(target).as_posix()) not in known), None)
    return f"it holds {unlisted}, which this command did not write" if unlisted else None


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
        if leftover.is_dir():
            with contextlib.suppress(OSError), _locked(leftover, wait=False):
                shutil.rmtree(leftover, ignore_errors=True)


def _sweep_files(directory: Path) -> None:
    """Remove the unfinished files of killed runs from a directory."""
    for leftover in directory.iterdir():
        if _STAGED_FILE.fullmatch(leftover.name) and leftover.is_file():
            with contextlib.suppress(OSError), _locked(leftover, wait=False):
                leftover.unlink()


@contextlib.contextmanager
def _locked(place: Path, *, wait: bool = True) -> Iterator[None]:
    """Lock a file or directory; raises BlockingIOError if another process holds it and `wait` is False."""
    if sys.platform == "win32":
        # Directories cannot be locked there, so leftovers cannot be recognised.
        if not wait:
            raise BlockingIOError
        yield
        return
    # A link is refused with an OSError, and a pipe does not block.
    descriptor = os.open(place, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        _lock(descriptor, wait=wait)
        yield
    finally:
        os.close(descriptor)


def _lock(descriptor: int, *, wait: bool) -> None:
    if sys.platform != "win32":
        import fcntl

        fcntl.flock(descriptor, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))


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
