"""A cache of prepared sessions: ONNX Runtime's own optimised graph of a model, with its weights laid out for this CPU.

The first run of a model on a machine writes it; later runs map its weights instead of reading, transforming and laying
them out again. An entry is a folder named by everything that its content depends on, with a record of its files. It is
used only while the files are the very ones that were written, or still have the recorded hashes.
"""

import contextlib
import hashlib
import json
import os
import platform
import re
import shutil
import stat
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import msgspec
import platformdirs

from fcn_deploy.errors import OutputError
from fcn_deploy.installation import __version__
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.storage import file_sha256, parse_json, staged_directory

GRAPH_FILE, WEIGHTS_FILE, RECORD_FILE = "graph.onnx", "weights.bin", "record.json"
FOLDER_VARIABLE = "FCN_DEPLOY_CACHE"
# The sessions of six FCNs at full size.
MAX_BYTES = 8 * 2**30
# Smaller models open in a few milliseconds without preparation.
MIN_MODEL_BYTES = 32 * 2**20
# Besides the new entry, so that a cache never fills a disk.
_FREE_BYTES = 2**30
_FORMAT = 2
_KEY_LENGTH = 32
# Entries, and what killed runs leave of them: nothing else is ever removed from the folder.
_ENTRY = re.compile(rf"[0-9a-f]{{{_KEY_LENGTH}}}")
_LEFTOVER = re.compile(rf"\.[0-9a-f]{{{_KEY_LENGTH}}}\.(partial|old)-\w+")


@dataclass(frozen=True)
class _File:
    """A file of an entry: its content, and what the file system says of it as long as nobody writes to it."""

    sha256: Annotated[str, msgspec.Meta(pattern=r"\A[0-9a-f]{64}\Z")]
    bytes: Annotated[int, msgspec.Meta(ge=0)]
    identity: tuple[int, int, int]  # inode, time of the last write, and of the last change of any kind, in ns


@dataclass(frozen=True)
class _EntryRecord:
    """The record of an entry."""

    format: int
    model: str  # path of the model that it was prepared from
    model_file: _File  # that model's file
    files: dict[str, _File]  # empty for a model whose prepared session computes something else


@dataclass(frozen=True)
class CachedSession:
    """An entry of the cache."""

    key: str  # the name of its folder
    model: str  # path of the model that it was prepared from
    bytes: int  # size of its files
    used_s: float  # time of its last use, in seconds since the epoch


@dataclass(frozen=True)
class SessionCache:
    """The prepared sessions in one folder.

    Attributes:
        folder: of the entries; it is made when the first one is written, for its owner alone.
        max_bytes: size of all entries together; the ones that were not used for longest make room for a new one.
    """

    folder: Path
    max_bytes: int = MAX_BYTES

    def entries(self) -> tuple[CachedSession, ...]:
        """Return the entries, the one that was used last first; folders without a readable record are left out."""
        found = [self._entry(folder) for folder in self._folders(_ENTRY)]
        return tuple(sorted((entry for entry in found if entry is not None), key=lambda entry: -entry.used_s))

    def knows(self, path: Path, sha256: str) -> bool:
        """Return whether the file at `path` is the one with that hash from which an entry was prepared.

        As for the entries' own files, nobody has written to it since. Windows keeps no time of the last change that
        programs cannot set, so nothing is known there.
        """
        if sys.platform == "win32":
            return False
        try:
            self._check_private()
        except CacheError:
            return False
        records = [self._record(folder) for folder in self._folders(_ENTRY)]
        known = [r.model_file for r in records if r is not None and r.model == str(path.resolve())]
        return any(file.sha256 == sha256 and _is_untouched(path.resolve(), file) for file in known)

    def clear(self) -> int:
        """Remove every entry, and what killed runs have left; returns the bytes of the entries."""
        freed = sum(entry.bytes for entry in self.entries())
        for folder in (*self._folders(_ENTRY), *self._folders(_LEFTOVER)):
            shutil.rmtree(folder, ignore_errors=True)
        return freed

    def discard(self, key: str) -> None:
        """Remove an entry that turned out to be of no use."""
        shutil.rmtree(self.folder / key, ignore_errors=True)

    def find(self, key: str) -> Path | None:
        """Return the folder of a sound entry, or None; one that is not sound is removed.

        Raises:
            CacheError: its folder is open to other users, or the session of this model cannot be prepared.
        """
        folder = self.folder / key
        record = self._record(folder)
        if record is None:
            return None
        self._check_private()
        if not record.files:
            raise CacheError("its prepared session computes something else")
        if not all(_is_unchanged(folder / name, file) for name, file in record.files.items()):
            self.discard(key)
            return None
        with contextlib.suppress(OSError):
            os.utime(folder / RECORD_FILE)
        return folder

    @contextlib.contextmanager
    def new_entry(self, key: str, model: Path, prepared: "PreparedModel") -> Iterator[Path]:
        """Yield an empty folder; when the block ends without an error, what is in it becomes the entry `key`.

        An entry of another process that was faster is replaced; who has mapped it keeps it. An empty folder records
        that this model is not to be prepared.

        Raises:
            CacheError: the folder cannot be written, has too little room, or is open to other users; the model's file
                was replaced meanwhile.
        """
        try:
            self._make_folder()
            self._check_private()
            self._make_room(prepared.expected_bytes)
            file = _File(prepared.model_sha256, prepared.model_bytes, _identity(model.resolve()))
            with staged_directory(self.folder / key, own_files=_all_files, force=True) as staging:
                yield staging
                _write_record(staging, model.resolve(), file)
            (self.folder / key).chmod(0o700)
        except OutputError as error:
            raise CacheError(error.problem) from error
        except OSError as error:
            raise CacheError(f"{self.folder}: {error.strerror}") from error

    def _make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise CacheError(f"cannot make {self.folder}: {error.strerror}") from error

    def _check_private(self) -> None:
        """Raise CacheError if others may write to the folder, or it belongs to somebody else."""
        if sys.platform == "win32":
            return
        try:
            facts = self.folder.stat()
        except OSError as error:
            raise CacheError(f"{self.folder}: {error.strerror}") from error
        if facts.st_uid != os.geteuid() or facts.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise CacheError(f"{self.folder} can be written by other users")

    def _make_room(self, expected_bytes: int) -> None:
        """Remove the entries that were not used for longest; raises CacheError if that is not enough."""
        entries = list(self.entries())
        while entries and sum(entry.bytes for entry in entries) + expected_bytes > self.max_bytes:
            shutil.rmtree(self.folder / entries.pop().key, ignore_errors=True)
        free = shutil.disk_usage(self.folder).free
        if expected_bytes > self.max_bytes or free < expected_bytes + _FREE_BYTES:
            raise CacheError(
                f"{self.folder} has no room: {free / 1e6:.0f} MB are free, {expected_bytes / 1e6:.0f} MB are needed"
            )

    def _folders(self, names: re.Pattern[str]) -> list[Path]:
        try:
            found = [path for path in self.folder.iterdir() if names.fullmatch(path.name)]
            return [path for path in found if path.is_dir() and not path.is_symlink()]
        except OSError:
            return []

    def _entry(self, folder: Path) -> CachedSession | None:
        record = self._record(folder)
        if record is None:
            return None
        size = sum(file.bytes for file in record.files.values())
        try:
            return CachedSession(folder.name, record.model, size, (folder / RECORD_FILE).stat().st_mtime)
        except OSError:  # another process has just removed it
            return None

    def _record(self, folder: Path) -> _EntryRecord | None:
        try:
            record = msgspec.convert(parse_json((folder / RECORD_FILE).read_bytes()), _EntryRecord)
        except (OSError, ValueError):
            return None
        return record if record.format == _FORMAT else None


@dataclass(frozen=True)
class PreparedModel:
    """A model whose session is kept in a cache.

    Attributes:
        cache: the cache.
        model_sha256: of the model's file, in hex.
        model_bytes: its size.
    """

    cache: SessionCache
    model_sha256: str
    model_bytes: int

    @property
    def expected_bytes(self) -> int:
        """Return how large its entry may become: transformed weights take up to twice their size in the file."""
        return 2 * self.model_bytes

    def key(self, runtime_version: str, options: OrtOptions) -> str:
        """Return the name of its entry: a hash of everything that the entry depends on."""
        facts = {
            "format": _FORMAT,
            "model": self.model_sha256,
            "runtime": runtime_version,
            "options": asdict(options) | {"cores": os.cpu_count()},
            "fcn-deploy": __version__,
            "processor": _processor(),
        }
        return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:_KEY_LENGTH]


class CacheError(Exception):
    """The cache cannot be used; the model is opened in the ordinary way, and the message says why."""


def default_cache() -> SessionCache:
    """Return the cache of this user: in the folder named by FCN_DEPLOY_CACHE, else where the system keeps caches."""
    folder = os.environ.get(FOLDER_VARIABLE)
    return SessionCache(Path(folder) if folder else platformdirs.user_cache_path("fcn-deploy") / "sessions")


def _processor() -> str:
    """Return the model and the instruction sets of this machine's processor, on which the layout of weights depends."""
    described = {platform.machine(), platform.processor()}
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
        described |= {line for line in lines if line.startswith(("model name", "flags", "Features", "CPU part"))}
    return "\n".join(sorted(described))


def _all_files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


def _identity(path: Path) -> tuple[int, int, int]:
    facts = path.lstat()
    return facts.st_ino, facts.st_mtime_ns, facts.st_ctime_ns


def _is_unchanged(path: Path, file: _File) -> bool:
    """Return whether a file is the one that was written, or has at least its content."""
    try:
        if not path.is_file() or path.is_symlink() or path.stat().st_size != file.bytes:
            return False
        return _is_untouched(path, file) or file_sha256(path) == file.sha256
    except OSError:
        return False


def _is_untouched(path: Path, file: _File) -> bool:
    try:
        return path.stat().st_size == file.bytes and _identity(path) == file.identity
    except OSError:
        return False


def _write_record(folder: Path, model: Path, file: _File) -> None:
    if not _is_untouched(model, file) or file_sha256(model) != file.sha256:
        raise CacheError(f"{model} was replaced while its session was prepared")
    for path in folder.iterdir():
        path.chmod(0o600)
    files = {
        path.name: _File(file_sha256(path), path.stat().st_size, _identity(path)) for path in sorted(folder.iterdir())
    }
    record = _EntryRecord(_FORMAT, str(model), file, files)
    (folder / RECORD_FILE).write_text(json.dumps(asdict(record)), encoding="utf-8")
