"""The stages on a Ray cluster: tasks that decode and encode, and one actor per device that holds the model.

Ray Data schedules, limits how far stages run ahead, and repeats the work of a lost worker; results are written under
names that do not depend on the worker, so repeating is harmless. Items travel pickled, since photos differ in size.
Every worker has to reach the artifact, the photos and the output under the same paths, and to have this toolkit
installed.

Ray's driver is a process of its own. Native threads of Ray outlive `ray.shutdown`, and may abort a process that ends
while they run: this must not change the exit code of a run whose results are complete.
"""

import logging
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from functools import partial
from typing import Any, BinaryIO, cast

import numpy as np
import psutil

from fcn_deploy.choices import Provider
from fcn_deploy.errors import FcnDeployError, UsageError
from fcn_deploy.prediction import stages
from fcn_deploy.prediction.options import Plan, Prediction, Task
from fcn_deploy.prediction.sinks import Sink
from fcn_deploy.segmentation import Segmenter, label_batch, make_batch, run_batch

# Ray otherwise reports its use over the network, and its core writes messages of its own to the terminal.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# Keeps a cluster that is started on this machine on the loopback interface: Ray's rule for Windows and macOS.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# A column of pickled items.
Rows = dict[str, Any]
_COLUMN = "item"
# Small enough to repeat for a lost worker, large enough to be worth a task.
_TASKS_PER_BLOCK = 8
# Cores per task: decoding and encoding take a tenth of the time of a run.
_HELPER_CPUS = 0.5
_CONNECT_TIMEOUT_S = 5
# Time for the photos being processed and for Ray's shutdown.
_END_TIMEOUT_S = 20
# For Ray's shutdown after a signal.
_TERMINATE_TIMEOUT_S = 5
_RERUN = "Run the same command again: finished photos are skipped."


def predict_on_ray(plan: Plan, tasks: Sequence[Task], sink: Sink) -> Iterator[Prediction]:
    """Segment photos on a Ray cluster; yields in the order of completion, each photo once it is written.

    Raises:
        UsageError: the cluster's address cannot be reached.
        FcnDeployError: a worker failed, for instance to write its results, or the driver's process ended early.
    """
    yield from run_in_driver(_answers, plan, list(tasks), sink)


def run_in_driver(work: Callable[..., Generator[Any, None, None]], *arguments: Any) -> Iterator[Prediction]:
    """Run the generator function `work` in the driver's process and yield what it yields before its None.

    The process looks for modules where this one does. It ends with this one, whatever ends this one.

    Raises:
        FcnDeployError: `work` yielded this error, or the process ended early.
    """
    # -P and the same path: the working directory is not searched unless this process searches it.
    code = f"import sys; sys.path[:] = {sys.path!r}; from {__name__} import drive; drive()"
    command = [sys.executable, "-P", "-c", code]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as driver:  # noqa: S603 - this interpreter
        try:
            _send(driver, (work, *arguments))
            yield from received(driver)
        finally:
            _end(driver)


def _send(driver: "subprocess.Popen[bytes]", job: object) -> None:
    """Send the job; stdin stays open, so that the driver notices the end of this process."""
    stdin = cast("BinaryIO", driver.stdin)
    try:
        pickle.dump(job, stdin)
        stdin.flush()
    except BrokenPipeError:
        pass  # reported by what the driver does not send
    except BaseException:
        driver.kill()  # it would wait for the rest of its job
        raise


def _end(driver: "subprocess.Popen[bytes]") -> int:
    """Wait for the driver to end and return its code: a closed pipe ends it at its next answer.

    When it takes too long, or when this wait is interrupted, it is told to end, and then killed.
    """
    try:
        cast("BinaryIO", driver.stdout).close()
        _wait(driver, _END_TIMEOUT_S)
    finally:
        try:
            driver.terminate()
            _wait(driver, _TERMINATE_TIMEOUT_S)
        finally:
            if driver.poll() is None:
                _kill_started_by(driver.pid)
                driver.kill()
            with suppress(BrokenPipeError):
                cast("BinaryIO", driver.stdin).close()
            driver.wait()
    return driver.returncode


def _wait(driver: "subprocess.Popen[bytes]", limit_s: float) -> None:
    with suppress(subprocess.TimeoutExpired):
        driver.wait(limit_s)


def _kill_started_by(pid: int) -> None:
    """Kill all processes below this one: a worker of Ray whose driver is gone first writes what it has in hand."""
    with suppress(psutil.NoSuchProcess):
        for process in psutil.Process(pid).children(recursive=True):
            with suppress(psutil.NoSuchProcess):
                process.kill()


def received(driver: "subprocess.Popen[bytes]") -> Iterator[Prediction]:
    """Yield the predictions that the driver sends, up to a None; later failures of the driver are ignored.

    Raises:
        FcnDeployError: the driver sent this error, or ended before the None.
    """
    try:
        for item in iter(partial(pickle.load, cast("BinaryIO", driver.stdout)), None):
            if isinstance(item, FcnDeployError):
                raise item
            yield item
    except (EOFError, pickle.UnpicklingError) as error:
        raise FcnDeployError(f"Ray's driver process ended early, with code {_end(driver)}", remedy=_RERUN) from error


def drive() -> None:
    """Run the driver: read a pickled job from stdin, send pickled answers to stdout, and end without cleanup."""
    # Ctrl-C reaches both processes; the parent ends this one.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with suppress(BrokenPipeError), os.fdopen(os.dup(sys.stdout.fileno()), "wb") as answers:
        # Output of Ray itself goes to stderr.
        os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
        work, *arguments = pickle.load(sys.stdin.buffer)  # noqa: S301 - from the parent process
        threading.Thread(target=_end_with_parent, args=(os.dup(sys.stdin.fileno()),), daemon=True).start()
        # Ray's processes inherit an empty stdin.
        os.dup2(os.open(os.devnull, os.O_RDONLY), sys.stdin.fileno())
        with closing(work(*arguments)) as items:
            for item in items:
                pickle.dump(item, answers)
                answers.flush()
    # Ray's shutdown is over. Ending the interpreter as usual would race with the native threads that remain.
    os._exit(0)


def _end_with_parent(stdin: int) -> None:
    """End this process as soon as the parent is gone: without the parent's lock, another run may write there."""
    os.read(stdin, 1)
    try:
        _kill_started_by(os.getpid())
    finally:
        os._exit(1)


def _answers(
    plan: Plan, tasks: Sequence[Task], sink: Sink
) -> Generator[Prediction | FcnDeployError | None, None, None]:
    try:
        yield from _run_data(plan, tasks, sink)
    except FcnDeployError as error:
        yield error
    except Exception as error:  # Ray raises what its workers or its own parts raise
        reason = (str(error).splitlines() or [""])[0]
        yield FcnDeployError(f"Ray failed with {type(error).__name__}: {reason}", remedy=_RERUN)
    yield None


def _run_data(plan: Plan, tasks: Sequence[Task], sink: Sink) -> Iterator[Prediction]:
    _prepare(plan.options.address)
    import ray

    with _cluster(plan.options.address):
        rows = [{_COLUMN: pickle.dumps(task)} for task in tasks]
        blocks = max(1, -(-len(rows) // _TASKS_PER_BLOCK))
        shared = ray.put((plan, sink))
        data = ray.data.from_items(rows, override_num_blocks=blocks)
        data = data.map_batches(_decode_rows, fn_args=(shared,), batch_size=None, num_cpus=_HELPER_CPUS)
        data = data.map_batches(
            _Model,
            fn_constructor_args=(plan,),
            batch_size=plan.batch,
            compute=ray.data.ActorPoolStrategy(min_size=1, max_size=_devices(plan)),
            **_actor_resources(plan),
        )
        # One part of a table at a time, or the content of a block.
        at_once = sink.rows_per_write if sink.rows_per_write > 1 else None
        data = data.map_batches(_finish_rows, fn_args=(shared,), batch_size=at_once, num_cpus=_HELPER_CPUS)
        yield from _predictions(data)


class _Model:
    """The actor that holds the model's open session between batches."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._segmenter: Segmenter | None = None

    def __call__(self, rows: Rows) -> Rows:
        return _stage(self._segment, rows)

    def _segment(self, items: list[Any]) -> Sequence[Any]:
        if self._segmenter is None:
            segmenter = Segmenter(
                self._plan.folder / self._plan.artifact,
                self._plan.options.provider,
                use_cache=self._plan.options.use_cache,
            )
            self._segmenter = segmenter.__enter__()
        return label_batch(self._segmenter, run_batch(self._segmenter, make_batch(self._segmenter, items)))


def _decode_rows(rows: Rows, shared: Any) -> Rows:
    plan, sink = _fetch(shared)
    return _stage(lambda items: [stages.decode(plan, sink, task) for task in items], rows)


def _finish_rows(rows: Rows, shared: Any) -> Rows:
    _, sink = _fetch(shared)
    return _stage(lambda items: stages.write(sink, stages.encode(sink, items)), rows)


def _stage(work: Callable[[list[Any]], Sequence[Any]], rows: Rows) -> Rows:
    """Apply `work` to the items of rows. Errors are returned as items, because Ray would turn them into text."""
    items = _items(rows)
    try:
        return _rows([item for item in items if isinstance(item, FcnDeployError)] or work(items))
    except FcnDeployError as error:
        return _rows([error])


def _fetch(shared: Any) -> Any:
    import ray

    return ray.get(shared)


def _items(rows: Rows) -> list[Any]:
    return [pickle.loads(item) for item in rows[_COLUMN]]  # noqa: S301 - from this run's own stages


def _rows(items: Sequence[Any]) -> Rows:
    column = np.empty(len(items), dtype=object)
    column[:] = [pickle.dumps(item, protocol=pickle.HIGHEST_PROTOCOL) for item in items]
    return {_COLUMN: column}


def _devices(plan: Plan) -> int:
    """Return the largest number of actors: one per GPU, or one per machine, because a session uses all its cores."""
    import ray

    if plan.options.provider is Provider.CPU:
        return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus == 0:
        raise UsageError(
            f"provider {plan.options.provider}: the Ray cluster has no GPU",
            remedy="Pass --provider cpu, or add a GPU node.",
        )
    return gpus


def _actor_resources(plan: Plan) -> dict[str, float]:
    import ray

    if plan.options.provider is not Provider.CPU:
        return {"num_gpus": 1, "num_cpus": _HELPER_CPUS}
    # All cores of a machine but one, so that one session runs per machine and decoding always finds a core.
    cores = min(node["Resources"]["CPU"] for node in ray.nodes() if node["Resources"].get("CPU", 0) > 0)
    return {"num_cpus": max(cores - 1, _HELPER_CPUS)}


def _predictions(data: Any) -> Iterator[Prediction]:
    for row in data.iter_rows():
        item = pickle.loads(row[_COLUMN])  # noqa: S301 - from this run's own stages
        if isinstance(item, FcnDeployError):
            raise item
        yield item


@contextmanager
def _cluster(address: str | None) -> Iterator[None]:
    """Connect to the cluster at `address`, or start one on this machine that ends with the block."""
    import ray

    quiet = {"log_to_driver": False, "logging_level": "ERROR", "configure_logging": False}
    try:
        ray.init(address or "local", **quiet, **({} if address else {"include_dashboard": False}))
    except (ConnectionError, ValueError, RuntimeError) as error:
        raise _no_cluster(address or "this machine", error) from error
    try:
        yield
    finally:
        ray.shutdown()


def _check_listening(address: str) -> None:
    """Check quickly that something listens at the address: Ray itself would retry for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_TIMEOUT_S):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"no Ray cluster answers at {address}: {error}",
        remedy="Check --address (HOST:PORT, or auto), or omit it to start a cluster on this machine.",
    )


def _prepare(address: str | None) -> None:
    """Turn off Ray's usage reports, progress bars and log lines; has to happen before Ray is imported."""
    for name, value in (_ENVIRONMENT if address else _ENVIRONMENT | _LOOPBACK).items():
        os.environ.setdefault(name, value)
    if address is not None:
        _check_listening(address)
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
