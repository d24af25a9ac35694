"""Results appear in one move: a directory is written beside its place and renamed into it when it is complete."""

import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from fcn_deploy.errors import OutputError

_PARTIAL = ".partial-"


@contextlib.contextmanager
def staged_directory(target: Path, *, marker: str, force: bool) -> Iterator[Path]:
    """A new directory beside `target` that becomes it, in one move, when the block ends without an error.

    With `force` an existing `target` is replaced if it holds a file named `marker`, or nothing. However the block
    ends, `target` is either what it was or complete. Leftovers of killed runs are removed first.

    Raises:
        OutputError: `target` exists (without `force`) or is no bundle, or cannot be written.
    """
    _check_target(target, marker, force=force)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        _sweep(target)
        staging = Path(tempfile.mkdtemp(prefix=f".{target.name}{_PARTIAL}", dir=target.parent))
    except OSError as error:
        raise _unwritable(target, error) from error
    with contextlib.ExitStack() as cleanup:
        cleanup.callback(shutil.rmtree, staging, ignore_errors=True)
        if sys.platform != "win32":
            cleanup.enter_context(_locked(staging))
        try:
            yield staging
            _publish(staging, target)
        except OSError as error:
            raise _unwritable(target, error) from error


@contextlib.contextmanager
def staged_file(target: Path) -> Iterator[Path]:
    """A path beside `target` for the block to write to, which becomes `target` when the block ends without an error.

    Raises:
        OutputError: it cannot be written.
    """
    staging = target.with_name(f".{target.name}{_PARTIAL}{os.getpid()}{target.suffix}")
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        yield staging
        staging.replace(target)
    except OSError as error:
        raise _unwritable(target, error) from error
    finally:
        with contextlib.suppress(OSError):
            staging.unlink(missing_ok=True)


def _check_target(target: Path, marker: str, *, force: bool) -> None:
    if not target.exists():
        return
    if not force:
        raise OutputError(f"{target} exists already", remedy="Pass --force to replace it, or another --output.")
    if not target.is_dir() or (any(target.iterdir()) and not (target / marker).is_file()):
        raise OutputError(
            f"{target} is no bundle (it has no {marker}), so --force does not replace it",
            remedy="Choose another --output, or remove it yourself.",
        )


def _unwritable(target: Path, error: OSError) -> OutputError:
    if error.strerror is None:
        raise error
    free = f"; {shutil.disk_usage(target.parent).free / 1e6:.0f} MB free" if target.parent.is_dir() else ""
    return OutputError(
        f"cannot write {target}: {error.strerror}{free}", remedy="Choose an --output with room that you may write to."
    )


def _publish(staging: Path, target: Path) -> None:
    staging.chmod(0o755)
    for file in (*staging.iterdir(), staging):
        _flush(file)
    if target.exists():
        # A directory cannot be replaced in one move: the old one steps aside under a name the next run sweeps.
        aside = Path(tempfile.mkdtemp(prefix=f".{target.name}{_PARTIAL}", dir=target.parent))
        target.rename(aside / target.name)
        staging.rename(target)
        shutil.rmtree(aside, ignore_errors=True)
    else:
        staging.rename(target)
    _flush(target.parent)


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sweep(target: Path) -> None:
    """Remove what killed exports to `target` left behind; the kernel released their locks."""
    for leftover in target.parent.glob(f".{target.name}{_PARTIAL}*"):
        with contextlib.suppress(BlockingIOError), _locked(leftover):
            shutil.rmtree(leftover, ignore_errors=True)


@contextlib.contextmanager
def _locked(staging: Path) -> Iterator[None]:
    """Hold a lock that lasts as long as this process, so that a leftover can be told from a running export."""
    if sys.platform == "win32":
        raise BlockingIOError  # directories cannot be locked there: leftovers stay until removed by hand
    import fcntl

    descriptor = os.open(staging, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield
    finally:
        os.close(descriptor)
