"""The same run on Ray: on a cluster of two workers, with one of them killed, and on one that is started for it."""

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from pyarrow import parquet

import fcn_deploy as fd
from tests.conftest import Run
from tests.messages import missing

PHOTOS = 40
# On the loopback interface alone.
ENVIRONMENT = os.environ | {"RAY_AUTH_MODE": "disabled", "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
MODEL_PROCESS = "ray::MapWorker(MapBatches(_Model))"


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """A head without cores and two workers of two, each with processes of its own; its address."""
    code = (
        "import sys; from ray.cluster_utils import Cluster; "
        "here = {'include_dashboard': False}; "
        "c = Cluster(initialize_head=True, head_node_args={'num_cpus': 0, **here}); "
        "[c.add_node(num_cpus=2, **here) for _ in range(2)]; c.wait_for_nodes(); "
        "print('cluster', c.address, flush=True); sys.stdin.read(); c.shutdown()"
    )
    command = [sys.executable, "-c", code]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=ENVIRONMENT | {"RAY_USAGE_STATS_ENABLED": "0"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        address = next(line.split()[1] for line in process.stdout if line.startswith("cluster "))
        yield address
        process.stdin.close()
        process.wait()


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
    killer.join()

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
    assert "error: cannot write" in done.stderr
    assert "out/00.labels.png" in done.stderr
    assert "Traceback" not in done.stderr


def test_bad_addresses(run_cli: Run, shared_bundle: Path, photos: list[Path]) -> None:
    unused = run_cli("predict", shared_bundle, photos[0], "--address", "127.0.0.1:1")
    assert unused.returncode == 2
    assert missing("127.0.0.1:1 Ray local", unused.stderr) == []

    nobody = on_ray(run_cli, shared_bundle, photos[0], "--address", "127.0.0.1:1")
    assert nobody.returncode == 2
    assert missing("Ray 127.0.0.1:1", nobody.stderr) == []
    assert "Traceback" not in nobody.stderr
