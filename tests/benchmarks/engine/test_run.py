"""Whole benchmarks of a narrow network: real processes, real runtimes."""

import importlib.util
import os
import shutil
import signal
import subprocess
import threading
from pathlib import Path

import psutil
import pytest

import fcn_deploy as fd
from benchmarks.engine import cases, run
from benchmarks.engine.run import BenchProgress, distinct, row_bytes
from benchmarks.report.results import Row, RowStatus
from fcn_deploy import BenchOptions, Protocol, Provider
from tests.conftest import narrow_options
from tests.messages import missing, states
from tests.processes import started, wait_until

PRLIMIT = shutil.which("prlimit") or ""
PLAIN_NODES = 49
SHARED = pytest.mark.usefixtures("shared_preparations")
QUICK = Protocol(duration_s=0.05, warmup_s=0.01, rounds=3, ceiling_s=0.05)


def options(*rows: str, provider: Provider = Provider.CPU) -> BenchOptions:
    return BenchOptions(provider, rows, protocol=QUICK, command=("fcn-deploy", "bench"))


@pytest.fixture(scope="module")
def report(shared_bundle: Path) -> fd.BenchReport:
    """All rows of the narrow bundle but torch.compile, which takes half a minute to compile."""
    return fd.bench(
        [shared_bundle], options("pytorch", "openvino-plain", "openvino", "ort-plain", "ort", "ort-prepared", "ort-e2e")
    )


def rows(report: fd.BenchReport) -> dict[str, Row]:
    return {row.key.case: row for row in report.rows}


def test_every_row_is_measured(report: fd.BenchReport) -> None:
    assert {name: str(row.status) for name, row in rows(report).items()} == dict.fromkeys(rows(report), "measured")
    for row in report.rows:
        assert row.measurement is not None
        assert len(row.measurement.rounds_ns) == 3
        assert row.measurement.first_ns > 0
        assert row.load_ns > 0


def test_every_row_computes_the_network(report: fd.BenchReport) -> None:
    for name, row in rows(report).items():
        assert [c["input_name"] for c in row.parity][:1] == ["astronaut.jpg"]
        assert row.flips == 0
        if name != "ort-e2e":
            assert len(row.parity) == 2
            assert row.worst_error is not None
            assert row.worst_error < 1e-5


def test_the_end_to_end_row_compares_labels(report: fd.BenchReport) -> None:
    (compared,) = rows(report)["ort-e2e"].parity

    assert rows(report)["ort-e2e"].end_to_end
    assert compared["pixels"] == 96 * 96
    assert "relative_error" not in compared


def test_every_node_is_placed(report: fd.BenchReport, shared_bundle: Path) -> None:
    nodes = len(fd.inspect(shared_bundle).layers)

    assert rows(report)["ort"].placement == {"CPUExecutionProvider": nodes}
    assert rows(report)["ort-plain"].placement == {"CPUExecutionProvider": PLAIN_NODES}


def test_the_profile_names_the_slowest_nodes(report: fd.BenchReport) -> None:
    nodes = rows(report)["ort"].nodes

    assert nodes
    assert nodes[0].time_ns >= nodes[-1].time_ns
    assert any(node.operator == "Conv" for node in nodes)


def test_work_and_limit_are_known(report: fd.BenchReport, shared_bundle: Path) -> None:
    rewritten, plain = fd.inspect(shared_bundle).multiply_adds, 151_962_336
    ours = {"ort", "ort-prepared", "ort-e2e", "openvino"}

    assert {name: row.work.multiply_adds for name, row in rows(report).items()} == {
        name: rewritten if name in ours else plain for name in rows(report)
    }
    assert rewritten < plain / 2
    assert all(0 < (report.limit_share(row) or 0) < 1.5 for row in report.rows)


def test_a_prepared_session_opens_the_same_graph(report: fd.BenchReport) -> None:
    ordinary, prepared = rows(report)["ort"], rows(report)["ort-prepared"]

    assert prepared.options.endswith("prepared session")
    assert prepared.parity == ordinary.parity  # equal to the bit


@SHARED
def test_rows_that_do_not_fit_into_memory_together_take_turns_with_the_same_two(
    shared_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(run, "_free_bytes", lambda _: 3 * row_bytes(fd.open_bundle(shared_bundle)))
    together: list[set[int]] = []

    def look(progress: BenchProgress) -> None:
        if progress.step.startswith("round 1"):
            together.append(set(workers()[1:]))

    found = rows(fd.bench([shared_bundle], options("pytorch", "ort-plain", "ort", "ort-e2e"), look))

    turns = {name: (one.first_turn, len(one.measurement.rounds_ns)) for name, one in found.items() if one.measurement}
    assert turns == {"pytorch": (0, 3), "ort-plain": (0, 6), "ort": (0, 6), "ort-e2e": (3, 3)}
    assert [len(pids) for pids in together] == [3] * 6
    assert len(set.intersection(*together)) == 2
    assert workers() == []


@SHARED
@pytest.mark.parametrize(("room", "in_both"), [(2, {"ort-plain": 6, "ort": 3}), (1, {"ort-plain": 3, "ort": 3})])
def test_the_baseline_is_the_last_row_to_leave_a_group(
    shared_bundle: Path, monkeypatch: pytest.MonkeyPatch, room: int, in_both: dict[str, int]
) -> None:
    monkeypatch.setattr(run, "_free_bytes", lambda _: room * row_bytes(fd.open_bundle(shared_bundle)))

    found = rows(fd.bench([shared_bundle], options("ort-plain", "ort", "ort-e2e")))

    rounds = {name: len(one.measurement.rounds_ns) for name, one in found.items() if one.measurement}
    assert rounds == in_both | {"ort-e2e": 3}


def test_the_environment_says_where(report: fd.BenchReport) -> None:
    environment = report.environment

    assert environment["cores"] >= 1
    assert environment["versions"]["torch"]
    assert 0 < environment["clock_overhead_ns"] < 10_000
    assert environment["command"] == ["fcn-deploy", "bench"]


@pytest.mark.parametrize(("level", "left_out"), [("simplify", "ort-simplified"), ("none", "ort-plain"), ("exact", "")])
def test_a_graph_that_the_bundle_has_itself_is_not_measured_twice(
    shared_bundle: Path, level: str, left_out: str
) -> None:
    from dataclasses import replace

    bundle = fd.open_bundle(shared_bundle)
    bundle = replace(bundle, manifest={**(bundle.manifest or {}), "optimize": level})
    chosen = cases.choose((), Provider.CPU)

    found = {case.name for case in distinct(bundle, chosen)}

    assert {"ort", "ort-plain", "ort-simplified"} - found == ({left_out} if left_out else set())


@SHARED
def test_a_row_that_dies_leaves_the_others_and_an_interruption_what_was_measured(shared_bundle: Path) -> None:
    def kill_one(progress: BenchProgress) -> None:
        if progress.step.startswith("round 3"):
            raise KeyboardInterrupt
        if progress.step.startswith("round 2") and progress.step.endswith("ort-plain on cpu"):
            os.kill(workers()[1], signal.SIGSEGV)

    report = fd.bench([shared_bundle], options("ort-plain", "ort"), kill_one)
    found = rows(report)

    assert found["ort-plain"].status is RowStatus.FAILED
    assert found["ort-plain"].problem.startswith("its process ended by SIGSEGV")
    assert found["ort-plain"].measurement is None
    assert found["ort"].measurement is not None
    assert len(found["ort"].measurement.rounds_ns) == 2
    assert report.interrupted
    assert workers() == []


@SHARED
@pytest.mark.skipif(not PRLIMIT, reason="needs prlimit")
@pytest.mark.timeout(240)
def test_a_bundle_without_a_reference_or_without_memory_leaves_the_others(tmp_path: Path, shared_bundle: Path) -> None:
    """One's preparation is killed, one needs more than the limit on address space set for its row, one is as usual."""
    killed = fd.export(narrow_options_of_batch(tmp_path / "killed", 2)).path
    large = fd.export(narrow_options_of_batch(tmp_path / "large", 16)).path
    killers: list[threading.Thread] = []

    def disturb(progress: BenchProgress) -> None:
        if progress.step.startswith("export the plain graph") and not killers:
            killers.append(threading.Thread(target=kill_second_worker))
            killers[0].start()
        if progress.step.startswith("first run") and "batch 16" in progress.step:
            for pid in workers()[1:]:
                mapped = psutil.Process(pid).memory_info().vms
                subprocess.run([PRLIMIT, f"--pid={pid}", f"--as={mapped + 50_000_000}"], check=True)

    first, second, third = fd.bench([killed, large, shared_bundle], options("ort"), disturb).rows

    assert first.status is RowStatus.SKIPPED
    assert first.problem.startswith("its reference could not be run: its process was killed")
    assert second.status is RowStatus.OUT_OF_MEMORY, second.problem
    assert second.measurement is None
    assert third.status is RowStatus.MEASURED


def kill_second_worker() -> None:
    wait_until(lambda: len(workers()) >= 2)
    os.kill(workers()[-1], signal.SIGKILL)


def narrow_options_of_batch(output: Path, batch: int) -> fd.ExportOptions:
    from dataclasses import replace

    return replace(narrow_options(output), onnx=fd.OnnxOptions(224, 224, batch), verify=False)


@SHARED
def test_threads_are_kept_to_and_a_runtime_that_is_not_installed_is_skipped(
    shared_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", hide("openvino"))
    chosen = [case for case in cases.CASES if case.name in ("openvino", "ort")]
    monkeypatch.setattr(cases, "CASES", tuple(chosen))
    cores: list[set[int]] = []

    def look(progress: BenchProgress) -> None:
        if progress.step.startswith("round 1"):
            cores.extend(os.sched_getaffinity(pid) for pid in workers()[1:])

    found = rows(fd.bench([shared_bundle], BenchOptions(threads=1, protocol=QUICK), look))

    assert found["openvino"].status is RowStatus.SKIPPED
    assert missing("OpenVINO 'fcn-deploy[openvino]'", found["openvino"].problem or "") == []
    assert found["ort"].status is RowStatus.MEASURED
    assert found["ort"].options == "1 threads"
    assert [len(allowed) for allowed in cores] == [1]


def hide(hidden: str) -> object:
    real = importlib.util.find_spec
    return lambda name, *rest: None if name == hidden else real(name, *rest)


@pytest.mark.parametrize("threads", [0, -1, 10_000])
def test_threads_out_of_their_bounds(shared_bundle: Path, threads: int) -> None:
    with pytest.raises(fd.UsageError, check=states(f"{threads} threads")):
        fd.bench([shared_bundle], BenchOptions(threads=threads))


def test_two_bundles_that_could_not_be_told_apart(shared_bundle: Path, bundle: Path) -> None:
    with pytest.raises(fd.UsageError, check=states("two FCN-8s 16 1x3x96x96 names")):
        fd.bench([shared_bundle, bundle], options("ort"))


def test_a_batch_no_bundle_has(shared_bundle: Path) -> None:
    with pytest.raises(fd.UsageError, check=states("batch 2 4 1 fixed")) as caught:
        fd.bench([shared_bundle], BenchOptions(batches=(1, 2, 4)))

    assert "fcn-deploy export --variant 8s --batch 2 --output bundle-b2" in caught.value.remedy


def test_the_wrong_checkpoint_is_refused(shared_bundle: Path, tmp_path: Path) -> None:
    with pytest.raises(fd.UsageError, check=states("artifact exported without checkpoint")):
        fd.bench([shared_bundle], BenchOptions(rebuild=fd.RebuildOptions(tmp_path / "x.pth")))


def test_a_trained_bundle_needs_its_very_checkpoint(tmp_path: Path) -> None:
    from dataclasses import replace

    import torch

    path, other = tmp_path / "fcn8s.pth", tmp_path / "other.pth"
    network = fd.fcn8s(channel_divisor=16)
    torch.save(network.state_dict(), path)
    torch.save({name: value + 1 for name, value in network.state_dict().items()}, other)
    trained = replace(narrow_options(tmp_path / "trained"), weights=fd.WeightsOptions(path), verify=False)
    bundle = fd.export(trained).path

    for wrong, problem in (
        (None, "artifact checkpoint SHA-256"),
        (other, "other.pth SHA-256 exported"),
        (tmp_path / "x", "checkpoint x file"),
    ):
        with pytest.raises(fd.CheckpointError, check=states(problem)):
            fd.bench([bundle], BenchOptions(rebuild=fd.RebuildOptions(wrong)))


def test_a_parent_that_is_killed_leaves_no_children(shared_bundle: Path) -> None:
    """Killed outright, the parent cannot end its children: they find their input closed."""
    import sys

    code = "import fcn_deploy as fd; fd.bench([fd_path], fd.BenchOptions(rows=('ort',)))".replace(
        "fd_path", f"__import__('pathlib').Path({str(shared_bundle)!r})"
    )
    with started([sys.executable, "-c", code]) as parent:
        wait_until(lambda: workers(parent.pid), seconds=90)
        children = workers(parent.pid)
        parent.kill()
        parent.wait(10)

    wait_until(lambda: not any(alive(pid) for pid in children))


def workers(parent: int | None = None) -> list[int]:
    """Process numbers of this process's children, oldest first: what measures the ceilings, then the rows."""
    return sorted(
        child.pid
        for child in psutil.Process(parent).children()
        if alive(child.pid) and "benchmarks.engine.worker" in child.cmdline()
    )


def alive(pid: int) -> bool:
    return bool(psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
