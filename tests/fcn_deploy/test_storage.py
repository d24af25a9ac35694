import contextlib
import errno
import os
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcn_deploy import OutputError
from fcn_deploy.storage import sole_writer, staged_directory, staged_file
from tests.messages import states
from tests.processes import started

MARKER = "manifest.json"


def stage(target: Path, content: str = "new", *, force: bool = False) -> None:
    with staged_directory(target, marker=MARKER, force=force) as staging:
        (staging / MARKER).write_text(content)


def contents(folder: Path) -> dict[str, str]:
    return {str(p.relative_to(folder)): p.read_text() for p in sorted(folder.rglob("*")) if p.is_file()}


def test_a_finished_block_publishes_and_nothing_else_remains(tmp_path: Path) -> None:
    stage(tmp_path / "deep" / "down" / "out")

    assert contents(tmp_path) == {"deep/down/out/manifest.json": "new"}
    assert (tmp_path / "deep/down/out").stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("error", [RuntimeError, KeyboardInterrupt, SystemExit])
def test_an_error_in_the_block_leaves_nothing(tmp_path: Path, error: type[BaseException]) -> None:
    def interrupted() -> None:
        with staged_directory(tmp_path / "out", marker=MARKER, force=False) as staging:
            (staging / "half").write_text("x")
            raise error

    with pytest.raises(error):
        interrupted()

    assert contents(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_artifact(tmp_path: Path) -> None:
    stage(tmp_path / "out", "old")

    with pytest.raises(RuntimeError), staged_directory(tmp_path / "out", marker=MARKER, force=True):
        raise RuntimeError

    assert contents(tmp_path) == {"out/manifest.json": "old"}


def test_force_replaces_a_bundle_and_an_empty_directory(tmp_path: Path) -> None:
    stage(tmp_path / "out", "old")
    (tmp_path / "empty").mkdir()

    stage(tmp_path / "out", force=True)
    stage(tmp_path / "empty", force=True)

    assert contents(tmp_path) == {"out/manifest.json": "new", "empty/manifest.json": "new"}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["empty", "out"]


def test_an_existing_target_needs_force(tmp_path: Path) -> None:
    stage(tmp_path / "out", "old")

    with pytest.raises(OutputError, check=states(f"{tmp_path / 'out'} exists", remedy="--force --output")):
        stage(tmp_path / "out")

    assert contents(tmp_path) == {"out/manifest.json": "old"}


def test_force_spares_what_is_no_bundle(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "cat.jpg").write_text("cat")
    (tmp_path / "file").write_text("text")

    for name in ("photos", "file"):
        with pytest.raises(OutputError, check=states(f"{name} no bundle manifest.json --force", remedy="--output")):
            stage(tmp_path / name, force=True)

    assert contents(tmp_path) == {"photos/cat.jpg": "cat", "file": "text"}


def test_no_space_is_reported_and_cleaned_up(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"out.*No space left on device.* \d+ MB"),
        staged_directory(tmp_path / "out", marker=MARKER, force=False),
    ):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    assert list(tmp_path.iterdir()) == []


def test_a_file_where_a_directory_is_needed(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")

    with pytest.raises(OutputError, match=r"(Not a directory|File exists)"):
        stage(tmp_path / "file" / "out")


HOLD = """
    import sys, time
    from pathlib import Path
    from fcn_deploy.storage import staged_directory
    with staged_directory(Path(sys.argv[1]), marker="manifest.json", force=True) as staging:
        (staging / "half").write_text("half-written")
        print("writing", flush=True)
        time.sleep(60)
"""


@contextlib.contextmanager
def holding(target: Path) -> Iterator["subprocess.Popen[str]"]:
    with started([sys.executable, "-c", textwrap.dedent(HOLD), target], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        yield process


def test_a_killed_run_leaves_the_old_artifact_and_the_next_run_sweeps_up(tmp_path: Path) -> None:
    target = tmp_path / "out"
    stage(target, "old")

    with holding(target) as process:
        process.send_signal(signal.SIGKILL)
    assert contents(target) == {MARKER: "old"}
    assert len(list(tmp_path.iterdir())) == 2

    stage(target, force=True)
    assert contents(tmp_path) == {"out/manifest.json": "new"}
    assert [p.name for p in tmp_path.iterdir()] == ["out"]


def test_a_running_export_is_not_swept(tmp_path: Path) -> None:
    target = tmp_path / "out"

    with holding(target) as process:
        stage(target)
        assert sorted(contents(tmp_path).values()) == ["half-written", "new"]
        process.kill()


def test_a_staged_file_replaces_in_one_move_or_not_at_all(tmp_path: Path) -> None:
    target = tmp_path / "new" / "file.txt"
    with staged_file(target) as staging:
        staging.write_text("one")
    with pytest.raises(RuntimeError), staged_file(target) as staging:
        raise RuntimeError(staging.write_text("two"))

    assert contents(tmp_path) == {"new/file.txt": "one"}


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def late() -> None:
        with staged_directory(tmp_path / "out", marker=MARKER, force=False) as staging:
            (staging / MARKER).write_text("new")
            (tmp_path / "out").mkdir()
            (tmp_path / "out" / "thesis.txt").write_text("years of work")

    with pytest.raises(OutputError, check=states("out exists", remedy="--force --output")):
        late()
    assert contents(tmp_path) == {"out/thesis.txt": "years of work"}


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError])
def test_an_interruption_between_the_two_renames_brings_the_old_one_back(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: type[BaseException]
) -> None:
    stage(tmp_path / "out", "old")
    real = Path.rename

    def interrupted(self: Path, target: Path) -> Path:
        if ".partial-" in self.name:
            raise error("now")
        return real(self, target)

    monkeypatch.setattr(Path, "rename", interrupted)

    with pytest.raises((error, OutputError)):
        stage(tmp_path / "out", force=True)
    assert contents(tmp_path) == {"out/manifest.json": "old"}


def test_a_kill_between_the_two_renames_is_mended_by_the_next_run(tmp_path: Path) -> None:
    aside = tmp_path / ".out.old-abc"
    stage(aside / "out", "old")

    with pytest.raises(OutputError, check=states("out exists", remedy="--force --output")):
        stage(tmp_path / "out")

    assert contents(tmp_path) == {"out/manifest.json": "old"}


def test_links_names_with_brackets_and_the_current_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    stage(tmp_path / "real[1]", "old")
    (tmp_path / "link").symlink_to("real[1]")
    (tmp_path / "dangling").symlink_to("later")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")

    stage(tmp_path / "link", force=True)
    stage(tmp_path / "dangling")
    stage(Path(), force=True)

    assert (tmp_path / "link").is_symlink()
    assert contents(tmp_path / "real[1]") == {MARKER: "new"}
    assert contents(tmp_path / "later") == {MARKER: "new"}
    assert contents(tmp_path / "here") == {MARKER: "new"}


def test_a_directory_has_one_writer_at_a_time(tmp_path: Path) -> None:
    with sole_writer(tmp_path / "deep" / "out"):
        with (
            pytest.raises(OutputError, match=r"another .*out") as caught,
            sole_writer(tmp_path / "deep" / "out"),
        ):
            pass
        assert "--output" in caught.value.remedy
        with sole_writer(tmp_path / "deep" / "other"):
            pass
    with sole_writer(tmp_path / "deep" / "out"):
        pass

    (tmp_path / "file").write_text("")
    with (
        pytest.raises(OutputError, check=states("out write directory", remedy="file --output")),
        sole_writer(tmp_path / "file" / "out"),
    ):
        pass


RACE = """
    import sys
    from pathlib import Path
    from fcn_deploy.storage import staged_directory
    for _ in range(150):
        with staged_directory(Path(sys.argv[1]), marker="manifest.json", force=True) as staging:
            (staging / "manifest.json").write_text("whole")
"""


def test_many_exports_to_one_place_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(tmp_path / "out")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(command, stderr=subprocess.PIPE)) for _ in range(3)]
        messages = [process.communicate(timeout=60)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], messages
    assert contents(tmp_path) == {"out/manifest.json": "whole"}
