"""The same run on Ray: on a cluster of two nodes, with a worker killed, and on one that is started for it."""

import importlib
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyarrow import parquet

import fcn_deploy as fd
from fcn_deploy.prediction import ray as ray_engine
from fcn_deploy.prediction.ray import received, run_in_driver
from tests.conftest import Call, Run
from tests.fcn_deploy.prediction.driver_work import stay
from tests.messages import missing
from tests.processes import started, wait_until

PHOTOS = 40
# On the loopback interface alone.
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
MODEL_PROCESS = "ray::MapWorker(MapBatches(_Model))"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A cluster of two nodes of two cores, each with processes of its own; its address."""
    code = (
        "import sys; from ray.cluster_utils import Cluster; "
        "here = {'num_cpus': 2, 'include_dashboard': False}; "
        "c = Cluster(initialize_head=True, head_node_args=here); "
        "c.add_node(**here); c.wait_for_nodes(); "
        "print('cluster', c.address, flush=True); sys.stdin.read(); c.shutdown()"
    )
    command = [sys.executable, "-c", code]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
    with started(command, env=ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"}, **pipes) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = next(line.split()[1] for line in process.stdout if line.startswith("cluster "))
        yield address
        process.stdin.close()
        process.wait(60)


@pytest.fixture
def many_photos(photos: list[Path], tmp_path: Path) -> Path:
    folder = tmp_path / "many"
    folder.mkdir()
    for i in range(PHOTOS):
        (folder / f"{i:02d}.png").write_bytes(photos[i % len(photos)].read_bytes())
    (folder / "broken.png").write_text("no picture")
    return folder


def content(folder: Path) -> dict[str, bytes]:
    return {p.name: p.read_bytes() for p in folder.iterdir()}


def on_ray(run_cli: Run, *arguments: object) -> "subprocess.CompletedProcess[str]":
    return run_cli("predict", *arguments, "--engine", "ray", env=ENVIRONMENT)


def test_a_cluster_writes_what_the_local_engine_writes(
    run_cli: Run, cluster: str, shared_bundle: Path, many_photos: Path, tmp_path: Path
) -> None:
    """Rows of a table; docs/deploy.md compares PNGs, on a cluster that is started for it."""
    options = fd.PredictOptions(tmp_path / "local", output_format=fd.OutputFormat.PARQUET)
    local = list(fd.predict(shared_bundle, fd.find_images([str(many_photos)]), options))

    arguments = ("--output", "ray", "--output-format", "parquet", "--address", cluster)
    done = on_ray(run_cli, shared_bundle, many_photos, *arguments)

    assert done.returncode == 3, done.stderr
    assert f"{PHOTOS} photos" in done.stderr
    assert f"1 of {PHOTOS + 1}" in done.stderr
    assert rows(tmp_path / "ray") == rows(tmp_path / "local")
    assert len(rows(tmp_path / "ray")) == PHOTOS
    assert (tmp_path / "ray" / "failures.jsonl").read_bytes() == (tmp_path / "local" / "failures.jsonl").read_bytes()
    assert sorted(line.split(" -> ")[0] for line in done.stdout.splitlines()) == sorted(
        str(p.image) for p in local if p.failure is None
    )
    options = fd.PredictOptions(tmp_path / "ray", output_format=fd.OutputFormat.PARQUET)
    again = fd.predict(shared_bundle, fd.find_images([str(many_photos)]), options)
    assert sum(p.done_before for p in again) == PHOTOS


def rows(folder: Path) -> list[dict[str, Any]]:
    return sorted(parquet.read_table(list(folder.glob("*.parquet"))).to_pylist(), key=lambda row: str(row["image"]))


def test_a_killed_worker_loses_nothing(
    run_cli: Run, cluster: str, shared_bundle: Path, many_photos: Path, tmp_path: Path
) -> None:
    """The process that holds the model is killed once the first results are there."""
    options = fd.PredictOptions(tmp_path / "local", output_format=fd.OutputFormat.NPZ)
    list(fd.predict(shared_bundle, fd.find_images([str(many_photos)]), options))
    killed: list[int] = []
    over = threading.Event()
    killer = threading.Thread(target=kill_a_model, args=(tmp_path / "ray", over, killed))
    killer.start()

    arguments = (shared_bundle, many_photos, "--output", "ray", "--output-format", "npz", "--address", cluster)
    done = on_ray(run_cli, *arguments)
    over.set()
    killer.join(10)

    assert killed
    assert done.returncode == 3, done.stderr
    assert f"{PHOTOS} photos" in done.stderr
    assert content(tmp_path / "ray") == content(tmp_path / "local")


def kill_a_model(output: Path, over: threading.Event, killed: list[int]) -> None:
    """Kill the first model process there is once there are results, and say which it was."""
    while not over.wait(0.01):
        if len(list(output.glob("*.npz"))) < 3:
            continue
        for process in psutil.process_iter(["pid", "cmdline"]):
            if MODEL_PROCESS in " ".join(process.info["cmdline"] or ()):
                os.kill(process.info["pid"], signal.SIGKILL)
                killed.append(process.info["pid"])
                return


def test_what_a_worker_meets_with_ends_the_run(
    run_cli: Run, cluster: str, shared_bundle: Path, photos: list[Path], tmp_path: Path
) -> None:
    (tmp_path / "out" / "00.labels.png").mkdir(parents=True)

    done = on_ray(run_cli, shared_bundle, photos[0], "--output", "out", "--address", cluster)

    assert done.returncode == 3
    assert "out/00.labels.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_addresses(run_cli: Run, call_cli: Call, shared_bundle: Path, photos: list[Path]) -> None:
    code, _, errors = call_cli("predict", shared_bundle, photos[0], "--address", "127.0.0.1:1")
    assert code == 2
    assert missing("127.0.0.1:1 Ray local", errors) == []

    nobody = on_ray(run_cli, shared_bundle, photos[0], "--address", "127.0.0.1:1")
    assert nobody.returncode == 2
    assert missing("Ray 127.0.0.1:1", nobody.stderr) == []
    assert "Traceback" not in nobody.stderr


@pytest.mark.parametrize("complete", [True, False])
def test_an_abort_of_the_driver_counts_only_before_its_last_answer(complete: bool) -> None:
    """Native threads of Ray may abort its process at the end, when every result is written."""
    expected = [fd.Prediction(Path("a.png")), fd.Prediction(Path("b.png"))]
    sent = [*expected, None] if complete else expected
    code = "import os, sys; sys.stdout.buffer.write(sys.stdin.buffer.read()); sys.stdout.flush(); os.abort()"
    with subprocess.Popen([sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:
        assert driver.stdin is not None
        driver.stdin.write(b"".join(pickle.dumps(item) for item in sent))
        driver.stdin.close()

        answers = received(driver)
        assert [next(answers), next(answers)] == expected
        if complete:
            assert list(answers) == []
        else:
            with pytest.raises(fd.FcnDeployError, match=f"driver process ended early, with code {-signal.SIGABRT}"):
                next(answers)

    assert driver.returncode == -signal.SIGABRT


REPOSITORY = Path(__file__).parents[3]
# The parent of a driver that does not end by itself: it prints the driver's processes, and when it waits for their end.
PARENT = """
from fcn_deploy.prediction import ray
from tests.fcn_deploy.prediction.driver_work import stay
wait = ray._wait
ray._wait = lambda driver, limit_s: (print("waits", flush=True), wait(driver, min(limit_s, 10)))
ray._TERMINATE_TIMEOUT_S = 0.5
for processes in ray.run_in_driver(stay):
    print(*processes, flush=True)
"""


def runs(pid: int) -> bool:
    try:
        return bool(psutil.Process(pid).status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


@contextmanager
def parent_of_a_driver() -> Iterator[tuple["subprocess.Popen[str]", list[int]]]:
    """The parent, blocked until its driver answers, and the processes of the driver."""
    with started([sys.executable, "-c", PARENT], stdout=subprocess.PIPE, cwd=REPOSITORY) as parent:
        assert parent.stdout is not None
        processes = [int(pid) for pid in parent.stdout.readline().split()]
        assert len(processes) == 2
        assert all(map(runs, processes))
        time.sleep(0.5)  # a signal just before it blocks would not wake it
        yield parent, processes


def test_the_driver_and_its_workers_end_with_their_parent() -> None:
    """They would go on writing while the next run may hold the lock of the same output."""
    with parent_of_a_driver() as (parent, processes):
        parent.kill()

        wait_until(lambda: not any(map(runs, processes)), seconds=10)


def test_a_second_interruption_leaves_no_driver_behind() -> None:
    with parent_of_a_driver() as (parent, processes):
        assert parent.stdout is not None
        parent.send_signal(signal.SIGINT)
        assert parent.stdout.readline() == "waits\n"
        assert all(map(runs, processes))

        interrupted = time.monotonic()
        parent.send_signal(signal.SIGINT)
        parent.wait(20)

        assert time.monotonic() - interrupted < 8  # sooner than the first wait would have ended
        assert parent.returncode == -signal.SIGINT
        wait_until(lambda: not any(map(runs, processes)), seconds=1)


def test_a_driver_that_does_not_end_is_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_engine, "_END_TIMEOUT_S", 0.1)
    monkeypatch.setattr(ray_engine, "_TERMINATE_TIMEOUT_S", 0.1)
    items: Any = run_in_driver(stay)
    processes = next(items)
    assert all(map(runs, processes))

    items.close()

    wait_until(lambda: not any(map(runs, processes)), seconds=10)


def test_the_driver_imports_from_where_its_parent_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """From a source checkout, say; the working directory is another place, whatever its files are called."""
    (tmp_path / "source").mkdir()
    (tmp_path / "source" / "only_here.py").write_text(
        "import importlib.util, os, sys\n"
        "def work():\n"
        "    yield sys.path\n"
        "    yield importlib.util.find_spec('ray').origin\n"
        "    yield None\n"
    )
    for name in ("ray", "numpy", "signal"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('imported from the working directory')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path / "source")
    monkeypatch.setattr(sys, "path", [place for place in sys.path if place not in ("", ".", str(tmp_path))])

    answers: list[Any] = [*run_in_driver(importlib.import_module("only_here").work)]

    path, origin = answers
    assert path == sys.path
    assert tmp_path not in Path(origin).parents
