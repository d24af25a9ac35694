import contextlib
import errno
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import pytest

from fcn_deploy import BundleError, OutputError
from fcn_deploy.storage import check_writable, sole_writer, staged_directory, staged_file
from tests.messages import states
from tests.processes import started

MARKER = "manifest.json"


def own_files(path: Path) -> set[str]:
    if not (path / MARKER).is_file():
        raise BundleError(f"it has no {MARKER}", remedy="")
    return {MARKER}


def stage(target: Path, content: str = "new", *, force: bool = False) -> None:
    with staged_directory(target, own_files=own_files, force=force) as staging:
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
        with staged_directory(tmp_path / "out", own_files=own_files, force=False) as staging:
            (staging / "half").write_text("x")
            raise error

    with pytest.raises(error):
        interrupted()

    assert contents(tmp_path) == {}
    assert list(tmp_path.iterdir()) == []


def test_an_error_leaves_the_old_artifact(tmp_path: Path) -> None:
    stage(tmp_path / "out", "old")

    with pytest.raises(RuntimeError), staged_directory(tmp_path / "out", own_files=own_files, force=True):
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

    for name, problem in (("photos", "no manifest.json"), ("file", "not a directory")):
        with pytest.raises(OutputError, check=states(f"--force {name} {problem}", remedy="--output")):
            stage(tmp_path / name, force=True)

    assert contents(tmp_path) == {"photos/cat.jpg": "cat", "file": "text"}


@pytest.mark.parametrize("foreign", ["notes.txt", "deep/down/notes.txt", "link", "deep/link"])
def test_force_spares_a_bundle_that_holds_something_of_the_users(tmp_path: Path, foreign: str) -> None:
    stage(tmp_path / "out", "old")
    (tmp_path / "out" / foreign).parent.mkdir(parents=True, exist_ok=True)
    if "link" in foreign:
        (tmp_path / "elsewhere").mkdir()
        (tmp_path / "out" / foreign).symlink_to(tmp_path / "elsewhere")
    else:
        (tmp_path / "out" / foreign).write_text("mine")
    before = contents(tmp_path)

    with pytest.raises(OutputError, check=states(f"out {foreign}", remedy="remove")):
        stage(tmp_path / "out", force=True)

    assert contents(tmp_path) == before


def test_no_space_is_reported_and_cleaned_up(tmp_path: Path) -> None:
    with (
        pytest.raises(OutputError, match=r"out.*No space left on device.* \d+ MB"),
        staged_directory(tmp_path / "out", own_files=own_files, force=False),
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
    with staged_directory(Path(sys.argv[1]), own_files=lambda _: {"manifest.json"}, force=True) as staging:
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


def test_two_writers_of_one_file_do_not_meet(tmp_path: Path) -> None:
    with staged_file(tmp_path / "file.txt") as first, staged_file(tmp_path / "file.txt") as second:
        first.write_text("first")
        second.write_text("second")

    assert contents(tmp_path) == {"file.txt": "first"}  # the one that ends last
    assert (tmp_path / "file.txt").stat().st_mode & 0o777 == 0o666 & ~umask()


def umask() -> int:
    now = os.umask(0)
    os.umask(now)
    return now


def test_a_link_under_a_name_that_could_be_guessed_is_not_followed(tmp_path: Path) -> None:
    """Names of unfinished files used to be `.file.partial.txt`."""
    (tmp_path / "victim").write_text("mine")
    (tmp_path / ".file.partial.txt").symlink_to(tmp_path / "victim")

    with staged_file(tmp_path / "file.txt") as staging:
        assert re.fullmatch(r"\.[0-9a-f]{16}\.partial\.txt", staging.name)
        staging.write_text("new")

    assert (tmp_path / "victim").read_text() == "mine"
    assert (tmp_path / "file.txt").read_text() == "new"


def test_only_regular_files_are_replaced(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "folder").mkdir()
    (tmp_path / "loop").symlink_to("loop")

    for target, problem in (
        (tmp_path / "pipe", "device pipe"),
        (Path("/dev/null"), "device"),
        (tmp_path / "folder", "directory"),
        (tmp_path / "loop", "symbolic links"),
    ):
        with pytest.raises(OutputError, check=states(f"cannot write {target} {problem}")), staged_file(target):
            pass
        with pytest.raises(OutputError, check=states(f"cannot write {target} {problem}")):
            check_writable(target)

    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "loop", "pipe"]
    assert not Path("/dev/null").is_file()


def test_a_directory_that_is_a_link_to_itself(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")

    with pytest.raises(OutputError, check=states("cannot write loop symbolic links")):
        stage(tmp_path / "loop", force=True)


def test_a_target_that_appears_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def late() -> None:
        with staged_directory(tmp_path / "out", own_files=own_files, force=False) as staging:
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
        with staged_directory(Path(sys.argv[1]), own_files=lambda _: {"manifest.json"}, force=True) as staging:
            (staging / "manifest.json").write_text("whole")
"""


def test_many_exports_to_one_place_at_once(tmp_path: Path) -> None:
    command = [sys.executable, "-c", textwrap.dedent(RACE), str(tmp_path / "out")]
    with contextlib.ExitStack() as stack:
        processes = [stack.enter_context(started(command, stderr=subprocess.PIPE)) for _ in range(3)]
        messages = [process.communicate(timeout=60)[1] for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], messages
    assert contents(tmp_path) == {"out/manifest.json": "whole"}


def test_what_killed_runs_left_is_removed_and_what_others_write_is_not(tmp_path: Path) -> None:
    code = """
        import sys, time
        from pathlib import Path
        from fcn_deploy.storage import staged_file
        with staged_file(Path(sys.argv[1])) as staging:
            staging.write_text("half")
            print("writing", flush=True)
            time.sleep(60)
    """
    command = [sys.executable, "-c", textwrap.dedent(code), tmp_path / "file.txt"]
    (tmp_path / ".mine.partial").write_text("mine")
    (tmp_path / f".{'0' * 16}.partial").symlink_to(tmp_path / ".mine.partial")
    with started(command, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "writing\n"
        with sole_writer(tmp_path):
            pass
        assert "half" in contents(tmp_path).values()
        process.kill()
        process.wait(10)

    check_writable(tmp_path / "file.txt")

    assert "half" not in contents(tmp_path).values()
    assert sorted(path.name for path in tmp_path.iterdir()) == [f".{'0' * 16}.partial", ".mine.partial"]


def test_a_link_stays_and_the_file_it_leads_to_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real" / "file.txt").write_text("old")
    (tmp_path / "link.txt").symlink_to(tmp_path / "real" / "file.txt")

    with staged_file(tmp_path / "link.txt") as staging:
        assert staging.parent == tmp_path / "real"
        staging.write_text("new")

    assert (tmp_path / "link.txt").is_symlink()
    assert contents(tmp_path) == {"link.txt": "new", "real/file.txt": "new"}


def test_a_planted_pipe_holds_nobody_up(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / f".{'0' * 16}.partial")
    os.mkfifo(tmp_path / ".out.partial-x")

    check_writable(tmp_path / "file.txt")
    with sole_writer(tmp_path):
        pass
    stage(tmp_path / "out")

    assert contents(tmp_path) == {"out/manifest.json": "new"}


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("fcntl.flock", refuse)

    with staged_file(tmp_path / "file.txt") as staging:
        staging.write_text("new")

    assert contents(tmp_path) == {"file.txt": "new"}
