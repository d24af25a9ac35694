"""Real processes, really killed."""

import os
import signal
from pathlib import Path

import pytest

from benchmarks.engine.processes import WorkerFailure, WorkerProcess
from benchmarks.engine.worker import _answer, failure_of
from fcn_deploy import BundleError, UsageError


@pytest.fixture
def log(tmp_path: Path) -> Path:
    return tmp_path / "log"


def test_a_call_and_its_answer(log: Path) -> None:
    process = WorkerProcess(log)

    assert process.call("peak_bytes") > 10_000_000
    process.close()


def test_what_a_method_raises_is_a_failure_and_the_process_goes_on(log: Path) -> None:
    process = WorkerProcess(log)

    answer = process.call("warm_up", 1.0)

    assert isinstance(answer, WorkerFailure)
    assert not answer.out_of_memory
    assert process.call("peak_bytes") > 0
    process.close()


@pytest.mark.parametrize(("number", "out_of_memory", "words"), [
    (signal.SIGKILL, True, "was killed, as Linux does when memory runs out"),
    (signal.SIGSEGV, False, "ended by SIGSEGV"),
])  # fmt: skip
def test_a_killed_process_is_a_failure(log: Path, number: int, out_of_memory: bool, words: str) -> None:
    process = WorkerProcess(log)
    process.call("peak_bytes")
    os.kill(process.pid, number)

    answer = process.call("peak_bytes")

    assert isinstance(answer, WorkerFailure)
    assert answer.out_of_memory == out_of_memory
    assert words in answer.message
    process.close()


def test_a_process_that_hangs_is_given_up(log: Path) -> None:
    process = WorkerProcess(log, limit_s=0.2)
    os.kill(process.pid, signal.SIGSTOP)

    answer = process.call("peak_bytes")

    assert answer == WorkerFailure(False, "its process gave no answer within 0.2 s")
    assert not Path(f"/proc/{process.pid}").exists()
    process.close()


def test_ctrl_c_does_not_reach_it(log: Path) -> None:
    process = WorkerProcess(log)
    process.call("peak_bytes")

    assert os.getsid(process.pid) != os.getsid(0)
    process.close()


def test_a_folder_called_like_ours_in_the_working_directory_is_not_taken(
    log: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "benchmarks").mkdir()
    (tmp_path / "benchmarks" / "__init__.py").write_text("raise SystemExit('not ours')")
    monkeypatch.chdir(tmp_path)
    process = WorkerProcess(log)

    assert process.call("peak_bytes") > 0
    process.close()


@pytest.mark.parametrize(("error", "out_of_memory", "message"), [
    (MemoryError(), True, "MemoryError"),
    (RuntimeError("CUDA out of memory. Tried 2.00 GiB\nmore"), True, "CUDA out of memory. Tried 2.00 GiB"),
    (RuntimeError("[ONNXRuntimeError] : 6 : Failed to allocate memory for requested buffer of size 1"), True, None),
    (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4 bytes"), True, None),
    (RuntimeError("std::bad_alloc"), True, "std::bad_alloc"),
    (RuntimeError("CUDNN_STATUS_ALLOC_FAILED"), True, None),
    (ValueError("\n  odd shape\n"), False, "odd shape"),
    (ValueError("x" * 1000), False, "x" * 300),
])  # fmt: skip
def test_failures_in_one_line(error: Exception, out_of_memory: bool, message: str | None) -> None:
    failure = failure_of(error)

    assert failure.out_of_memory == out_of_memory
    if message is not None:
        assert failure.message == message


def test_memory_that_a_runtime_wraps_into_another_error_is_recognised() -> None:
    error = BundleError("ONNX Runtime refuses m.onnx: Failed to allocate memory for 9 bytes", remedy="Export again.")

    assert _answer(lambda: (_ for _ in ()).throw(error), ()) == WorkerFailure(True, error.problem)


def test_errors_travel_between_processes() -> None:
    import pickle

    again = pickle.loads(pickle.dumps(UsageError("a problem", remedy="a remedy")))  # noqa: S301 - our own

    assert isinstance(again, UsageError)
    assert (again.problem, again.remedy) == ("a problem", "a remedy")
