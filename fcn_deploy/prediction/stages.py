"""The stages around the model, each a function of its input: decode a photo, encode its labels, write the result.

Threads of one process and tasks of a Ray cluster run the same stages; the model itself runs in between
(`fcn_deploy.segmentation`).
"""

from collections.abc import Iterable, Iterator, Sequence

from fcn_deploy.errors import ImageError
from fcn_deploy.images import decode_image, read_file
from fcn_deploy.prediction.options import Decoded, Plan, Prediction, Task
from fcn_deploy.prediction.sinks import Encoded, OccupiedError, Sink
from fcn_deploy.segmentation import Labelled, fit


def decode(plan: Plan, sink: Sink, task: Task) -> Decoded | Prediction:
    """Read and fit a photo; return the prediction at once when results exist, or a failure.

    A photo fails that cannot be read, or whose results would replace a file of the user's.
    """
    try:
        data = read_file(plan.folder / task.image, f"image {task.image}")
        key = plan.key(data)
        finished = sink.finished(task, key)
        if finished is not None:
            return finished
        sink.check_replaceable(task)
        photo = decode_image(data, str(task.image), plan.options.max_photo_mpx * 1_000_000)
    except (ImageError, OccupiedError) as error:
        return Prediction(task.image, failure=error, untrained=plan.info.provenance.untrained)
    canvas = plan.info.preprocessing.mean_image(plan.height, plan.width)
    return Decoded(fit(photo, canvas, keep_aspect=plan.options.keep_aspect), task, key)


def encode(sink: Sink, entries: Sequence[Labelled[Decoded] | Prediction]) -> list[Encoded | Prediction]:
    """Encode the result of every labelled photo, in order; predictions pass through."""
    return [sink.encode(entry) if isinstance(entry, Labelled) else entry for entry in entries]


def group_writes(entries: Iterable[Encoded | Prediction], size: int) -> Iterator[list[Encoded | Prediction]]:
    """Yield groups of `size` results to write; predictions between them stay in place."""
    group: list[Encoded | Prediction] = []
    for entry in entries:
        group.append(entry)
        results = sum(isinstance(e, Encoded) for e in group)
        if results in (0, size):
            yield group
            group = []
    if group:
        yield group


def write(sink: Sink, entries: Sequence[Encoded | Prediction]) -> list[Prediction]:
    """Write the results among `entries`, or raise OutputError; return all predictions, in order."""
    results = [entry for entry in entries if isinstance(entry, Encoded)]
    written = iter(sink.write(results) if results else ())
    return [next(written) if isinstance(entry, Encoded) else entry for entry in entries]
