"""Label maps of photos of any size with an artifact of one fixed size."""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from fcn_deploy.errors import OutputError
from fcn_deploy.prediction.local import predict_locally
from fcn_deploy.prediction.options import EngineName, OutputFormat, PredictOptions
from fcn_deploy.prediction.plan import Plan, plan_of, tasks_of
from fcn_deploy.prediction.sinks import FileSink, Sink
from fcn_deploy.prediction.store import Store, open_store
from fcn_deploy.prediction.work import Prediction, Task
from fcn_deploy.segmentation import Segmenter

FAILURES_FILE = "failures.jsonl"


def predict(path: Path, images: Sequence[Path], options: PredictOptions | None = None) -> Iterator[Prediction]:
    """Segment photos and write their results; yields every distinct image once, failures included.

    Results of the same photo, model and options that are there already are left as they are. Photos that cannot be
    read are listed in `failures.jsonl` beside the results. Yields in order, but for the engine `ray`.

    Raises:
        BundleError: the artifact is missing, damaged, or has no facts about its classes.
        ProviderError: the provider asked for would not run.
        OutputError: results cannot be written, or another run is writing there.
        UsageError: the output's address, or that of the Ray cluster, cannot be opened.
    """
    options = options or PredictOptions()
    segmenter = Segmenter(path, options.provider)
    plan = plan_of(path, segmenter, options)
    store = open_store(options.output, remote=options.remote)
    with store.claim():
        sink = open_sink(plan, store)
        yield from _noting_failures(store, _run(plan, tasks_of(images), sink, segmenter))
        sink.settle()


def _run(plan: Plan, tasks: Sequence[Task], sink: Sink, segmenter: Segmenter) -> Iterator[Prediction]:
    if plan.options.engine is EngineName.RAY:
        from fcn_deploy.prediction.distributed import predict_on_ray

        yield from predict_on_ray(plan, tasks, sink)
    else:
        yield from predict_locally(plan, tasks, sink, segmenter)


def open_sink(plan: Plan, store: Store) -> Sink:
    """The sink of a run.

    Raises:
        OutputError: there is a table that cannot be read.
    """
    if plan.options.output_format is OutputFormat.PARQUET:
        from fcn_deploy.prediction.table import TableSink

        return TableSink(plan, store)
    return FileSink(plan, store)


def _noting_failures(store: Store, predictions: Iterable[Prediction]) -> Iterator[Prediction]:
    """Pass predictions on; list those that failed in a file, also when the run does not come to its end."""
    lines: list[str] = []
    try:
        for prediction in predictions:
            failure = prediction.failure
            if failure is not None:
                facts = {"image": str(prediction.image), "problem": failure.problem, "remedy": failure.remedy}
                lines.append(json.dumps(facts) + "\n")
            yield prediction
    except BaseException:
        # Why it ended matters more than the list.
        with suppress(OutputError):
            _write_failures(store, lines)
        raise
    _write_failures(store, lines)


def _write_failures(store: Store, lines: Sequence[str]) -> None:
    if lines:
        store.write(FAILURES_FILE, "".join(lines).encode())
    else:
        store.remove(FAILURES_FILE)
