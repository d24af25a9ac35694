"""How the pipeline of one process batches, groups and names."""

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fcn_deploy as fd
from fcn_deploy.images import Pixels
from fcn_deploy.prediction.options import Decoded, Prediction, make_tasks
from fcn_deploy.prediction.run import PredictionSummary
from fcn_deploy.prediction.sinks import Encoded
from fcn_deploy.prediction.stages import group_writes
from fcn_deploy.runtime.base import Arrays
from fcn_deploy.segmentation import Batch, PendingPhoto, Segmenter, make_batches


def test_groups_of_results_take_along_what_needs_no_writing() -> None:
    done = Prediction(Path("a"), done_before=True)
    encoded = Encoded(Prediction(Path("b")))

    groups = list(group_writes([done, encoded, done, encoded, encoded, done, done], 2))

    assert groups == [[done], [encoded, done, encoded], [encoded, done, done]]


def test_batches_do_not_wait_for_photos_that_need_no_run(shared_bundle: Path) -> None:
    done = Prediction(Path("a"), done_before=True)

    with Segmenter(shared_bundle) as segmenter:
        batches: list[Batch[Decoded, Prediction]] = list(make_batches(segmenter, [done] * 100))

    assert [len(batch.entries) for batch in batches] == [64, 36]
    assert all(batch.arrays is None for batch in batches)


@pytest.mark.parametrize("others", [0, 1])
def test_large_batches_are_full(shared_bundle: Path, others: int) -> None:
    """Batches of 100 photos: photos alone, or an entry that needs no run after every second one."""
    done = Prediction(Path("a"), done_before=True)
    with Segmenter(shared_bundle) as segmenter:
        fitted = segmenter.fit(np.zeros((4, 4, 3), np.uint8), keep_aspect=False)
    photo = PendingPhoto(fitted)

    class Large:
        batch = 100

        def feed(self, canvases: list[Pixels]) -> Arrays:
            return {"canvases": np.stack(canvases)}

    entries: list[Any] = ([photo] * 2 + [done] * others) * 125
    batches: list[Batch[PendingPhoto, Prediction]] = list(make_batches(cast("Segmenter", Large()), entries))

    assert [len(batch.arrays["canvases"]) for batch in batches if batch.arrays] == [100, 100, 50]


def test_a_summary_counts_one_photo_in_the_singular() -> None:
    assert str(PredictionSummary(segmented=1)).startswith("1 photo segmented,")
    assert str(PredictionSummary(segmented=2)).startswith("2 photos segmented,")
    assert str(PredictionSummary()).startswith("0 photos segmented,")
    assert str(PredictionSummary(failed=1)).endswith("; 1 of 1 photo failed")
    assert str(PredictionSummary(segmented=2, failed=1)).endswith("; 1 of 3 photos failed")


@given(st.lists(st.sampled_from(["a", "A", "a-2", "a-3", "b", "b-2"]), max_size=12))
def test_names_are_distinct_whatever_the_case(stems: list[str]) -> None:
    images = [Path(str(i)) / f"{stem}.png" for i, stem in enumerate(stems)]

    names = [task.name.casefold() for task in make_tasks(images)]

    assert len(set(names)) == len(names)
    assert {stem.casefold() for stem in stems} <= set(names)


def test_photos_that_come_twice_are_done_once(shared_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    found = list(fd.predict(shared_bundle, [photos[0]] * 5 + photos[:2], fd.PredictOptions(tmp_path / "out")))

    assert [p.image for p in found] == photos[:2]
