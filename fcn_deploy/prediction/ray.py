"""The stages on a Ray cluster: tasks that decode and encode, and one actor per device that holds the model.

Ray Data schedules, holds back what is too far ahead, and repeats what a lost worker had in hand; results are written
under names that do not depend on who writes them, so that repeating is harmless. Items travel pickled, since photos
differ in size. Every worker has to reach the artifact, the photos and the output under the same paths, and to have
this toolkit installed.
"""

import logging
import os
import pickle
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fcn_deploy.choices import Provider
from fcn_deploy.errors import FcnDeployError, UsageError
from fcn_deploy.prediction import stages
from fcn_deploy.prediction.plan import Plan, Prediction, Task
from fcn_deploy.prediction.sinks import Sink
from fcn_deploy.segmentation import Segmenter

# Ray otherwise reports its use over the network, and its core writes remarks of its own to the terminal.
_ENVIRONMENT = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_BACKEND_LOG_LEVEL": "fatal"}
# A cluster of this machine's own then cannot be reached from elsewhere: Ray's rule for Windows and macOS.
_LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}

# A column of pickled items.
Rows = dict[str, Any]
_COLUMN = "item"
# What a lost worker has to do again, and what a task is worth starting for.
_TASKS_PER_BLOCK = 8
# Of a core: decoding and encoding take a tenth of the time of a run.
_HELPER_CPUS = 0.5
_ANSWER_S = 5


def predict_on_ray(plan: Plan, tasks: Sequence[Task], sink: Sink) -> Iterator[Prediction]:
    """Segment photos on a Ray cluster; yields as they are done, each once it is written.

    Raises:
        UsageError: the cluster's address cannot be reached.
        FcnDeployError: what a worker met with, such as an output that cannot be written.
    """
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
        # A part of a table at a time, or what a block has.
        at_once = sink.rows_per_write if sink.rows_per_write > 1 else None
        data = data.map_batches(_finish_rows, fn_args=(shared,), batch_size=at_once, num_cpus=_HELPER_CPUS)
        yield from _predictions(data)


class _Model:
    """The actor: a session that stays open from one batch to the next."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._segmenter: Segmenter | None = None

    def __call__(self, rows: Rows) -> Rows:
        return _stage(self._segment, rows)

    def _segment(self, items: list[Any]) -> Sequence[Any]:
        if self._segmenter is None:
            segmenter = Segmenter(self._plan.folder / self._plan.artifact, self._plan.options.provider)
            self._segmenter = segmenter.__enter__()
        batch = stages.batch_of(self._segmenter, items)
        return stages.label(self._segmenter, stages.infer(self._segmenter, batch))


def _decode_rows(rows: Rows, shared: Any) -> Rows:
    plan, sink = _fetch(shared)
    return _stage(lambda items: [stages.decode(plan, sink, task) for task in items], rows)


def _finish_rows(rows: Rows, shared: Any) -> Rows:
    _, sink = _fetch(shared)
    return _stage(lambda items: stages.write(sink, stages.encode(sink, items)), rows)


def _stage(work: Callable[[list[Any]], Sequence[Any]], rows: Rows) -> Rows:
    """The rows of what `work` makes of items. Its errors travel as items to the driver: Ray would wrap them in text."""
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
    """How many actors there may be: one per GPU, or one per machine, whose cores one session uses by itself."""
    import ray

    if plan.options.provider is Provider.CPU:
        return sum(node["Alive"] and node["Resources"].get("CPU", 0) > 0 for node in ray.nodes())
    gpus = int(ray.cluster_resources().get("GPU", 0))
    if gpus == 0:
        raise UsageError(
            f"provider {plan.options.provider}: the Ray cluster has no GPU", remedy="Pass --provider cpu, or add one."
        )
    return gpus


def _actor_resources(plan: Plan) -> dict[str, float]:
    import ray

    if plan.options.provider is not Provider.CPU:
        return {"num_gpus": 1, "num_cpus": _HELPER_CPUS}
    # All but one of a machine's cores: one session uses them all, and decoding always finds room. Ray Data spreads.
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
    """The cluster at `address`, or one on this machine that ends with the block."""
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


def _check_answers(address: str) -> None:
    """Find out in seconds that nobody listens: Ray itself tries for minutes."""
    if address == "auto":
        return
    host, _, port = address.rpartition("://")[2].rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWER_S):
            pass
    except (OSError, ValueError, OverflowError) as error:
        raise _no_cluster(address, error) from error


def _no_cluster(address: str, error: Exception) -> UsageError:
    return UsageError(
        f"no Ray cluster answers at {address}: {error}",
        remedy="Check --address (HOST:PORT, or auto), or leave it out to start one here.",
    )


def _prepare(address: str | None) -> None:
    """Neither reports over the network nor progress bars nor log lines of Ray's own; before Ray is imported."""
    for name, value in (_ENVIRONMENT if address else _ENVIRONMENT | _LOOPBACK).items():
        os.environ.setdefault(name, value)
    if address is not None:
        _check_answers(address)
    from ray.data import DataContext

    DataContext.get_current().enable_progress_bars = False
    for name in ("ray", "ray.data"):
        logging.getLogger(name).setLevel(logging.ERROR)
