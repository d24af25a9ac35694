"""Where results go: a directory, or an address that fsspec opens. A file appears complete, or not at all."""

import contextlib
import re
import secrets
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fcn_deploy.errors import FcnDeployError, OutputError, UsageError
from fcn_deploy.storage import sole_writer, staged_file

# A protocol, or several that build on each other: `simplecache::s3://`.
_ADDRESS = re.compile(r"[a-z0-9+.-]+(::[a-z0-9+.-]+)*://", re.IGNORECASE)


@dataclass(frozen=True)
class Store:
    """Files by name in one folder; can be pickled.

    Raises:
        UsageError: on first use, when there is no such protocol or its package is not installed.
    """

    output: str  # the directory or address, as the user wrote it
    directory: Path | None = None  # absolute path of the directory; None for an address

    def location(self, name: str) -> str:
        """Return the path or address of a file, as the user would write it."""
        return str(Path(self.output, name)) if self.directory else f"{self.output.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """Return a file's content, or None when there is no such file."""
        with self._errors_named(name):
            return bytes(self._files.cat_file(name)) if self.exists(name) else None

    def exists(self, name: str) -> bool:
        """Return whether there is such a file."""
        with self._errors_named(name):
            return bool(self._files.isfile(name))

    def names(self, suffix: str) -> list[str]:
        """Return the files with that suffix, sorted; hidden files, which may be incomplete, are left out."""
        with self._errors_named(""):
            try:
                paths = self._files.ls("", detail=False)
            except FileNotFoundError:
                return []
        found = (str(path).rpartition("/")[2] for path in paths)
        return sorted(name for name in found if name.endswith(suffix) and not name.startswith("."))

    def write(self, name: str, data: bytes) -> None:
        """Write or replace a file in one move, or raise OutputError and leave the old file in place."""
        if self.directory:
            # fsspec would not flush the file to the disk before it gets its name.
            with staged_file(self.directory / name) as staging:
                staging.write_bytes(data)
            return
        # Not every file system writes whole objects only.
        partial = f".{secrets.token_hex(8)}.partial"
        with self._errors_named(name):
            try:
                self._files.makedirs("", exist_ok=True)
                self._files.pipe_file(partial, data)
                self._files.mv(partial, name)
            except BaseException:
                with contextlib.suppress(Exception):
                    self._files.rm_file(partial)
                raise

    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""
        with self._errors_named(name), contextlib.suppress(FileNotFoundError):
            self._files.rm_file(name)

    @contextlib.contextmanager
    def _errors_named(self, name: str) -> Iterator[None]:
        """Raise OutputError for what a file system behind an address raises: an OSError, or that it cannot do this."""
        try:
            yield
        except FcnDeployError:
            raise
        except Exception as error:
            if self.directory and isinstance(error, OSError):
                raise
            reason = getattr(error, "strerror", None) or f"{type(error).__name__} {error}".strip()
            raise OutputError(
                f"cannot read or write {self.location(name)}: {reason}",
                remedy="Check the address, your permissions and the free space there; it has to take files.",
            ) from error

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Lock the directory for this run; an address is only opened, because object stores have no locks.

        Raises:
            OutputError: another run writes there, or nothing can be written there.
        """
        with sole_writer(self.directory) if self.directory else contextlib.nullcontext():
            _ = self._files
            yield

    @cached_property
    def _files(self) -> Any:
        import fsspec

        if self.directory:
            return fsspec.filesystem("dir", path=self.directory.as_posix(), target_protocol="file")
        try:
            if not _ADDRESS.match(self.output):
                raise ValueError("it names no protocol")
            system, path = fsspec.core.url_to_fs(self.output)
        except Exception as error:  # each file system has its own
            raise UsageError(
                f"output {self.output} cannot be opened: {error}",
                remedy="Use a protocol that fsspec knows, and install its package (s3fs for s3://, gcsfs for gs://).",
            ) from error
        return fsspec.filesystem("dir", path=path, fs=system)


def open_store(output: Path | str) -> Store:
    """Return the store of an output directory, or of an address for fsspec such as `s3://bucket/folder`."""
    return Store(str(output), None if "://" in str(output) else Path.cwd() / output)
