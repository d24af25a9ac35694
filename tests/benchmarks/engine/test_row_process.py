"""One row against a process that answers as it is told to."""

from pathlib import Path
from typing import Any, ClassVar

import pytest

from benchmarks.engine import processes
from benchmarks.engine.cases import CASES
from benchmarks.engine.processes import FirstRuns, LoadReport, RowProcess, RowSpec, Samples, WorkerFailure
from benchmarks.engine.run import Schedule
from benchmarks.engine.workspace import Workspace
from benchmarks.report.results import RowStatus, WorkEstimate
from fcn_deploy import (
    BenchOptions,
    BundleError,
    ModelInfo,
    NetworkSpec,
    ParityError,
    Protocol,
    Provenance,
    Provider,
    Variant,
)
from fcn_deploy.artifact.bundle import RebuildOptions
from fcn_deploy.parity.compare import LabelComparison
from tests.benchmarks import reports

SECOND = 1_000_000_000
EQUAL = LabelComparison("photo", 1.0, 100, 0, 0, 0.0, (100,), (100,))


class Scripted:
    """Stands for a row's process: gives the answers it was made with and keeps what it was asked."""

    answers: ClassVar[dict[str, Any]]
    asked: ClassVar[list[tuple[str, tuple[Any, ...]]]]

    def __init__(self, *_: object) -> None: ...

    def send(self, *_: object) -> None: ...

    def receive(self) -> Any:
        return LoadReport("PyTorch 1.0", "2 threads", {}, 5)

    def call(self, method: str, *arguments: Any) -> Any:
        self.asked.append((method, arguments))
        answer = self.answers[method]
        if isinstance(answer, Exception):
            raise answer
        return answer

    def close(self) -> None: ...


@pytest.fixture
def row(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RowProcess:
    Scripted.answers = {
        "first": FirstRuns(30 * SECOND, SECOND // 20, [EQUAL]), "warm_up": 3, "sample": Samples([1, 2]),
        "peak_bytes": 7, "profile": (),
    }  # fmt: skip
    Scripted.asked = []
    monkeypatch.setattr(processes, "WorkerProcess", Scripted)
    info = ModelInfo(NetworkSpec(Variant.FCN8S), Provenance(rng_seed=0))
    workspace = Workspace(tmp_path, tmp_path / "model.onnx", info, (1, 3, 96, 96), 18, RebuildOptions())
    spec = RowSpec(CASES[0], workspace, Provider.CPU, ())
    made = RowProcess(spec, WorkEstimate(1, 1, 1), tmp_path / "log")
    made.start(0)
    made.finish_loading()
    return made


def test_a_slow_first_run_does_not_shorten_the_warm_up(row: RowProcess) -> None:
    """Thirty seconds of compiling say nothing about how warm the runs after it are."""
    row.first_run()
    row.warm_up(1.0)

    assert row.last_ns == SECOND // 20
    assert Scripted.asked[-1] == ("warm_up", (0.95,))


def test_a_run_longer_than_the_warm_up_is_one(row: RowProcess) -> None:
    Scripted.answers["first"] = FirstRuns(3 * SECOND, 2 * SECOND, [EQUAL])

    row.first_run()
    row.warm_up(1.0)

    assert Scripted.asked[-1] == ("warm_up", (0.0,))


@pytest.mark.parametrize("name", ["profile", "peak_bytes"])
@pytest.mark.parametrize("answer", [WorkerFailure(True, "gone"), BundleError("refused", remedy="")])
def test_latencies_are_kept_when_the_extras_fail(row: RowProcess, name: str, answer: Any) -> None:
    row.first_run()
    row.sample(1.0)
    Scripted.answers[name] = answer

    row.finish()

    assert row.row.status is RowStatus.MEASURED
    assert row.row.measurement is not None


def test_flips_of_sure_pixels_are_wrong_and_get_no_latency(row: RowProcess) -> None:
    Scripted.answers["first"] = FirstRuns(1, 1, [LabelComparison("photo", 1.0, 100, 30, 5, 0.4, (40, 30), (70, 60))])

    row.first_run()
    row.sample(1.0)

    assert row.row.status is RowStatus.WRONG
    assert "photo: clear flips 5 (allowed: at most 0)" in row.row.problem
    assert row.row.measurement is None


def test_outputs_that_cannot_even_be_compared_are_wrong_too(row: RowProcess) -> None:
    Scripted.answers["first"] = ParityError("largest label: 248, not at most 20", remedy="")

    row.first_run()

    assert (row.row.status, row.row.problem) == (RowStatus.WRONG, "largest label: 248, not at most 20")
    assert not row.running


def test_running_out_of_memory_in_a_turn_ends_the_row(row: RowProcess) -> None:
    row.first_run()
    row.sample(1.0)
    Scripted.answers["sample"] = WorkerFailure(True, "no memory left")

    row.sample(1.0)

    assert not row.running
    assert (row.row.status, row.row.problem) == (RowStatus.OUT_OF_MEMORY, "no memory left")
    assert row.row.measurement is None


def test_rows_follow_other_neighbours_in_other_rounds(monkeypatch: pytest.MonkeyPatch) -> None:
    turns: list[int] = []

    class Taker:
        running, last_ns, row = True, SECOND, reports.row("ort")

        def __init__(self, number: int) -> None:
            self.number = number

        def sample(self, _: float) -> None:
            turns.append(self.number)

    schedule = Schedule(BenchOptions(protocol=Protocol(rounds=5)), (), 1, lambda _: None)
    monkeypatch.setattr(schedule, "_processes", [Taker(n) for n in range(7)])
    for turn in range(5):
        schedule._round(turn)

    rounds = [turns[i : i + 7] for i in range(0, 35, 7)]
    assert all(sorted(taken) == list(range(7)) for taken in rounds)
    before = [{taken[taken.index(n) - 1] for taken in rounds if taken.index(n)} for n in range(7)]
    assert min(len(neighbours) for neighbours in before) >= 2
