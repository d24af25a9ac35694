"""Where results go: a directory, or whatever fsspec has an address for. A file is there whole, or not at all."""

import contextlib
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from fcn_deploy.errors import OutputError, UsageError
from fcn_deploy.storage import sole_writer, staged_file


class Store(ABC):
    """Files by name; travels between processes."""

    @abstractmethod
    def where(self, name: str) -> str:
        """The path or address of a file."""

    @abstractmethod
    def read(self, name: str) -> bytes | None:
        """A file's content, or None where there is no such file."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether there is such a file."""

    @abstractmethod
    def names(self, suffix: str) -> list[str]:
        """The files whose names end so, sorted."""

    @abstractmethod
    def write(self, name: str, data: bytes) -> None:
        """Write a file, or replace it, in one move.

        Raises:
            OutputError: it cannot be written; what was there still is.
        """

    @abstractmethod
    def remove(self, name: str) -> None:
        """Remove a file, if there is one."""

    @abstractmethod
    def claim(self) -> AbstractContextManager[None]:
        """Be the only run that writes here, where that can be seen to.

        Raises:
            OutputError: another run does, or nothing can be written here.
        """


@dataclass(frozen=True)
class LocalStore(Store):
    """A directory.

    Attributes:
        root: as the user named it.
        folder: where it begins if it is relative.
    """

    root: Path
    folder: Path

    def where(self, name: str) -> str:
        """Below the directory, as the user named that."""
        return str(self.root / name)

    def read(self, name: str) -> bytes | None:
        """Of a file."""
        path = self._path(name)
        return path.read_bytes() if path.is_file() else None

    def exists(self, name: str) -> bool:
        """Of a file."""
        return self._path(name).is_file()

    def names(self, suffix: str) -> list[str]:
        """Hidden files, which are not complete, left out."""
        return sorted(p.name for p in self._path("").glob(f"*{suffix}") if not p.name.startswith("."))

    def write(self, name: str, data: bytes) -> None:
        """By a temporary name beside it."""
        with staged_file(self._path(name)) as staging:
            staging.write_bytes(data)

    def remove(self, name: str) -> None:
        """Of a file."""
        self._path(name).unlink(missing_ok=True)

    def claim(self) -> AbstractContextManager[None]:
        """By a lock on the directory."""
        return sole_writer(self._path(""))

    def _path(self, name: str) -> Path:
        return self.folder / self.root / name


@dataclass(frozen=True)
class UrlStore(Store):
    """An address that fsspec knows. Two runs into one cannot be told from each other.

    Raises:
        UsageError: no such protocol, or its package is not installed.
    """

    url: str

    def where(self, name: str) -> str:
        """Below the address, as the user gave that."""
        return f"{self.url.rstrip('/')}/{name}"

    def read(self, name: str) -> bytes | None:
        """Of an object."""
        return bytes(self._system.cat_file(self._path(name))) if self.exists(name) else None

    def exists(self, name: str) -> bool:
        """Of an object."""
        return bool(self._system.isfile(self._path(name)))

    def names(self, suffix: str) -> list[str]:
        """Hidden ones, which are not complete, left out."""
        found = (str(path).rpartition("/")[2] for path in self._system.glob(self._path(f"*{suffix}")))
        return sorted(name for name in found if not name.startswith("."))

    def write(self, name: str, data: bytes) -> None:
        """By a temporary name beside it: not every system has whole objects only."""
        partial = self._path(f".{name}.partial")
        try:
            self._system.makedirs(self._path("").rstrip("/"), exist_ok=True)
            self._system.pipe_file(partial, data)
            self._system.mv(partial, self._path(name))
        except OSError as error:
            with contextlib.suppress(OSError):
                self._system.rm_file(partial)
            raise OutputError(
                f"cannot write {self.where(name)}: {error.strerror or error}",
                remedy="Check the address, your rights and the room there.",
            ) from error

    def remove(self, name: str) -> None:
        """Of an object."""
        with contextlib.suppress(FileNotFoundError):
            self._system.rm_file(self._path(name))

    @contextlib.contextmanager
    def claim(self) -> Iterator[None]:
        """Only that the address can be opened: object stores have no locks."""
        _ = self._system
        yield

    def _path(self, name: str) -> str:
        return f"{self._opened[1].rstrip('/')}/{name}"

    @property
    def _system(self) -> Any:
        return self._opened[0]

    @cached_property
    def _opened(self) -> tuple[Any, str]:
        import fsspec

        try:
            system, path = fsspec.core.url_to_fs(self.url)
        except (ValueError, ImportError) as error:
            raise UsageError(
                f"output {self.url} cannot be opened: {error}",
                remedy="Use a protocol that fsspec knows, and install its package (s3fs for s3://, gcsfs for gs://).",
            ) from error
        return system, str(path)


def open_store(output: Path | str, *, remote: bool) -> Store:
    """The store of an output directory, or of an address."""
    return UrlStore(str(output)) if remote else LocalStore(Path(output), Path.cwd())
