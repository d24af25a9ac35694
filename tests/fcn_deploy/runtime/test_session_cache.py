"""Prepared sessions: the same outputs to the bit, and what happens to damaged, foreign and full caches."""

import errno
import json
import logging
import os
import shutil
import stat
from collections import namedtuple
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fcn_deploy import segmentation
from fcn_deploy.artifact import bundle as artifact_bundle
from fcn_deploy.choices import CacheAction
from fcn_deploy.errors import BundleError
from fcn_deploy.runtime import ort, session_cache
from fcn_deploy.runtime.ort import OrtRunner
from fcn_deploy.runtime.ort_options import OrtOptions
from fcn_deploy.runtime.session_cache import (
    GRAPH_FILE,
    RECORD_FILE,
    WEIGHTS_FILE,
    CacheError,
    PreparedModel,
    SessionCache,
    default_cache,
)
from fcn_deploy.segmentation import Segmenter
from fcn_deploy.storage import file_sha256
from tests.conftest import Call

FEEDS = {"image": np.random.default_rng(3).normal(0, 60, (1, 3, 96, 96)).astype(np.float32)}
Usage = namedtuple("Usage", "total used free")


@pytest.fixture
def cache(tmp_path: Path) -> SessionCache:
    return SessionCache(tmp_path / "cache")


def prepared(bundle: Path, cache: SessionCache) -> PreparedModel:
    model = bundle / "model.onnx"
    return PreparedModel(cache, file_sha256(model), model.stat().st_size)


def logits(bundle: Path, cache: SessionCache | None, options: OrtOptions | None = None) -> np.ndarray:
    model = prepared(bundle, cache) if cache is not None else None
    with OrtRunner(bundle / "model.onnx", options, prepared=model) as runner:
        return runner.run(FEEDS)["logits"]


def test_the_first_run_prepares_and_the_second_maps_it(shared_bundle: Path, cache: SessionCache) -> None:
    expected = logits(shared_bundle, None)

    first = logits(shared_bundle, cache)
    (entry,) = cache.entries()
    written = {path.name: path.stat().st_mtime_ns for path in (cache.folder / entry.key).iterdir()}
    second = logits(shared_bundle, cache)

    assert expected.tobytes() == first.tobytes() == second.tobytes()
    assert set(written) == {GRAPH_FILE, WEIGHTS_FILE, RECORD_FILE}
    assert entry.model == str((shared_bundle / "model.onnx").resolve())
    assert entry.bytes == sum((cache.folder / entry.key / name).stat().st_size for name in (GRAPH_FILE, WEIGHTS_FILE))
    # The second run wrote nothing but the time of its use.
    for name in (GRAPH_FILE, WEIGHTS_FILE):
        assert (cache.folder / entry.key / name).stat().st_mtime_ns == written[name]


def test_only_the_owner_can_read_it(shared_bundle: Path, cache: SessionCache) -> None:
    logits(shared_bundle, cache)

    assert stat.S_IMODE(cache.folder.stat().st_mode) == 0o700


def test_every_cause_of_another_session_makes_another_key(
    shared_bundle: Path, cache: SessionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = prepared(shared_bundle, cache)
    keys = [
        model.key("1.31.1", OrtOptions()),
        model.key("1.31.2", OrtOptions()),
        model.key("1.31.1", OrtOptions(threads=1)),
        replace(model, model_sha256="0" * 64).key("1.31.1", OrtOptions()),
    ]
    monkeypatch.setattr(session_cache, "_processor", lambda: "another one")
    keys.append(model.key("1.31.1", OrtOptions()))

    assert len(set(keys)) == 5
    assert model.key("1.31.1", OrtOptions()) == keys[-1]


def test_a_file_that_somebody_exchanged_is_prepared_again(shared_bundle: Path, cache: SessionCache) -> None:
    expected = logits(shared_bundle, cache)
    (entry,) = cache.entries()
    weights = cache.folder / entry.key / WEIGHTS_FILE
    poisoned = bytearray(weights.read_bytes())
    poisoned[len(poisoned) // 2] ^= 0x40
    weights.unlink()
    weights.write_bytes(poisoned)

    assert logits(shared_bundle, cache).tobytes() == expected.tobytes()
    assert weights.read_bytes() != bytes(poisoned)


def test_a_copied_cache_is_used_if_its_content_is_the_same(shared_bundle: Path, cache: SessionCache) -> None:
    logits(shared_bundle, cache)
    (entry,) = cache.entries()
    moved = SessionCache(cache.folder.with_name("moved"))
    shutil.copytree(cache.folder, moved.folder)
    moved.folder.chmod(0o700)

    assert moved.find(entry.key) == moved.folder / entry.key


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"format": 9, "model": "m", "files": {}}', b'{"files": 3}'])
def test_a_damaged_record_is_no_entry(shared_bundle: Path, cache: SessionCache, content: bytes) -> None:
    expected = logits(shared_bundle, cache)
    (entry,) = cache.entries()
    record = cache.folder / entry.key / RECORD_FILE
    record.write_bytes(content)

    assert cache.entries() == ()
    assert logits(shared_bundle, cache).tobytes() == expected.tobytes()
    assert len(cache.entries()) == 1


def test_links_are_not_followed(shared_bundle: Path, cache: SessionCache, tmp_path: Path) -> None:
    logits(shared_bundle, cache)
    (entry,) = cache.entries()
    graph = cache.folder / entry.key / GRAPH_FILE
    graph.rename(tmp_path / "graph.onnx")
    graph.symlink_to(tmp_path / "graph.onnx")

    assert cache.find(entry.key) is None


def test_a_folder_that_others_can_write_to_is_not_used(
    shared_bundle: Path, cache: SessionCache, caplog: pytest.LogCaptureFixture
) -> None:
    expected = logits(shared_bundle, cache)
    cache.folder.chmod(0o777)

    with caplog.at_level(logging.WARNING):
        assert logits(shared_bundle, cache).tobytes() == expected.tobytes()

    assert f"{cache.folder} can be written by other users" in caplog.text


def test_a_full_disk(
    shared_bundle: Path, cache: SessionCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: Usage(10**12, 10**12 - 10**6, 10**6))

    logits(shared_bundle, cache)

    assert "1 MB are free" in caplog.text
    assert cache.entries() == ()


def test_a_file_in_the_place_of_the_folder(
    shared_bundle: Path, cache: SessionCache, caplog: pytest.LogCaptureFixture
) -> None:
    cache.folder.write_text("mine")

    logits(shared_bundle, cache)

    assert str(cache.folder) in caplog.text
    assert cache.folder.read_text() == "mine"


def test_the_entry_that_was_not_used_for_longest_makes_room(shared_bundle: Path, cache: SessionCache) -> None:
    logits(shared_bundle, cache, OrtOptions(threads=1))
    (old,) = cache.entries()
    os.utime(cache.folder / old.key / RECORD_FILE, (1, 1))
    logits(shared_bundle, cache, OrtOptions(threads=2))
    kept = next(entry for entry in cache.entries() if entry.key != old.key)
    needed = prepared(shared_bundle, cache).expected_bytes
    small = replace(cache, max_bytes=kept.bytes + needed)

    logits(shared_bundle, small, OrtOptions(threads=3))

    keys = {entry.key for entry in cache.entries()}
    assert old.key not in keys
    assert kept.key in keys
    assert len(keys) == 2


def test_a_session_that_computes_something_else_is_refused_for_good(
    shared_bundle: Path, cache: SessionCache, caplog: pytest.LogCaptureFixture
) -> None:
    model = prepared(shared_bundle, cache)
    key = model.key("1.31.1", OrtOptions())
    with cache.new_entry(key, shared_bundle / "model.onnx", model):
        pass

    with pytest.raises(CacheError, match="something else"):
        cache.find(key)


def test_a_model_that_was_prepared_is_known_until_somebody_touches_it(bundle: Path, cache: SessionCache) -> None:
    model, link = bundle / "model.onnx", bundle.parent / "link"
    link.symlink_to(bundle)
    sha256 = file_sha256(model)
    unknown = cache.knows(model, sha256)
    logits(bundle, cache)

    assert (unknown, cache.knows(model, sha256), cache.knows(link / "model.onnx", sha256)) == (False, True, True)
    assert not cache.knows(model, "0" * 64)
    assert not cache.knows(bundle / "manifest.json", sha256)
    cache.folder.chmod(0o777)
    assert not cache.knows(model, sha256)
    cache.folder.chmod(0o700)
    with model.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    assert not cache.knows(model, sha256)


def test_a_damaged_model_is_refused_although_its_session_is_prepared(
    bundle: Path, cache: SessionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(segmentation, "default_cache", lambda: cache)
    logits(bundle, cache)
    read: list[Path] = []

    def reading(path: Path) -> str:
        read.append(path)
        return file_sha256(path)

    monkeypatch.setattr(artifact_bundle, "file_sha256", reading)
    Segmenter(bundle)
    Segmenter(bundle, use_cache=False)

    assert read == [bundle / "model.onnx"]
    with (bundle / "model.onnx").open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\0")
    with pytest.raises(BundleError, match="SHA-256 differs"):
        Segmenter(bundle)


def test_a_model_that_is_replaced_meanwhile_has_no_entry(
    bundle: Path, cache: SessionCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    prepare = ort._prepare

    def replacing(*arguments: Any) -> Any:
        (bundle / "model.onnx").touch()
        return prepare(*arguments)

    monkeypatch.setattr(ort, "_prepare", replacing)

    logits(bundle, cache)

    assert "was replaced while its session was prepared" in caplog.text
    assert cache.entries() == ()


def test_a_model_that_is_not_the_one_that_was_hashed_gets_no_entry(
    bundle: Path, cache: SessionCache, caplog: pytest.LogCaptureFixture
) -> None:
    """It was replaced after its hash was computed, and before it was opened."""
    model = prepared(bundle, cache)
    expected = logits(bundle, None)
    other = replace(model, model_sha256="0" * 64)

    with OrtRunner(bundle / "model.onnx", prepared=other) as runner:
        found = runner.run(FEEDS)["logits"]

    assert "was replaced while its session was prepared" in caplog.text
    assert cache.entries() == ()
    assert found.tobytes() == expected.tobytes()


def test_without_shared_memory_a_prepared_session_has_its_own(
    bundle: Path, cache: SessionCache, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuse(*_: Any) -> None:
        raise RuntimeError("an arena is registered already")

    ort._make_shared_arena.cache_clear()
    monkeypatch.setattr("onnxruntime.create_and_register_allocator", refuse)
    try:
        first, second = logits(bundle, cache), logits(bundle, cache)
    finally:
        monkeypatch.undo()
        ort._make_shared_arena.cache_clear()

    assert "prepared sessions share no memory" in caplog.text
    assert len(cache.entries()) == 1
    assert first.tobytes() == second.tobytes()


def test_nothing_else_is_removed_from_its_folder(shared_bundle: Path, cache: SessionCache) -> None:
    """FCN_DEPLOY_CACHE may name a folder that holds other things."""
    others = [cache.folder / name for name in (".ssh", "Documents", "0" * 31, ".git.partial-x", f"{'0' * 32}.txt")]
    for folder in others:
        folder.mkdir(parents=True)
        (folder / RECORD_FILE).write_text("{}")
    cache.folder.chmod(0o700)
    logits(shared_bundle, replace(cache, max_bytes=1))
    logits(shared_bundle, cache)

    cache.clear()

    assert sorted(cache.folder.iterdir()) == sorted(others)
    assert all((folder / RECORD_FILE).exists() for folder in others)


def test_an_entry_that_disappears_or_cannot_be_opened_is_passed_over(
    shared_bundle: Path, cache: SessionCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = logits(shared_bundle, cache)
    (entry,) = cache.entries()
    graph = cache.folder / entry.key / GRAPH_FILE
    monkeypatch.setattr(SessionCache, "find", lambda self, key: self.folder / key)
    graph.write_bytes(b"no graph")

    assert logits(shared_bundle, cache).tobytes() == expected.tobytes()
    assert logits(shared_bundle, cache).tobytes() == expected.tobytes()
    assert caplog.text.count("not a prepared one") == 2
    assert cache.entries() == ()


def test_a_disk_that_fills_up_while_the_entry_is_written(
    shared_bundle: Path, cache: SessionCache, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)

    found = logits(shared_bundle, cache)

    assert "No space left" in caplog.text
    assert found.tobytes() == logits(shared_bundle, None).tobytes()
    assert cache.entries() == ()


def test_an_error_leaves_no_entry(shared_bundle: Path, cache: SessionCache) -> None:
    def killed() -> None:
        with cache.new_entry("0" * 32, shared_bundle / "model.onnx", prepared(shared_bundle, cache)) as folder:
            (folder / GRAPH_FILE).write_bytes(b"half")
            raise RuntimeError

    with pytest.raises(RuntimeError):
        killed()

    assert list(cache.folder.iterdir()) == []


def test_the_command_lists_and_clears(
    call_cli: Call, shared_bundle: Path, cache: SessionCache, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FCN_DEPLOY_CACHE", str(cache.folder))
    logits(shared_bundle, default_cache())
    (entry,) = cache.entries()

    assert call_cli("cache", CacheAction.WHERE) == (0, f"{cache.folder}\n", "")
    code, listed, _ = call_cli("cache")
    assert (code, entry.key in listed, "prepared sessions: 1," in listed) == (0, True, True)
    code, listed, _ = call_cli("cache", "list", "--json")
    assert (code, json.loads(listed)["entries"][0]["key"]) == (0, entry.key)
    code, said, _ = call_cli("cache", "clear")
    assert (code, f"removed {entry.bytes / 1e6:.1f} MB" in said) == (0, True)
    assert cache.entries() == ()
