"""The pipeline of one process: in order, bounded, overlapping, and ended by the first error."""

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fcn_deploy as fd
from fcn_deploy.prediction.local import _ahead, _grouped, _pool
from fcn_deploy.prediction.plan import tasks_of
from fcn_deploy.prediction.sinks import Encoded
from fcn_deploy.prediction.stages import collate
from fcn_deploy.prediction.work import Prediction, Task
from fcn_deploy.segmentation import Segmenter

DEADLOCK_S = 60


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(1, 5), st.integers(1, 4))
def test_ahead_keeps_the_order_and_its_distance(count: int, limit: int, threads: int) -> None:
    given_out: list[int] = []

    def items() -> Iterator[int]:
        for i in range(count):
            given_out.append(i)
            yield i

    with ThreadPoolExecutor(threads) as pool:
        for read, result in enumerate(_ahead(pool, lambda i: i * i, items(), limit)):
            assert result == read * read
            assert len(given_out) - read <= limit
    assert len(given_out) == count


def test_items_overlap() -> None:
    second_began = threading.Event()

    def work(item: int) -> bool:
        if item == 1:
            second_began.set()
            return True
        return second_began.wait(DEADLOCK_S)

    with ThreadPoolExecutor(2) as pool:
        assert list(_ahead(pool, work, [0, 1], 2)) == [True, True]


def test_an_error_drops_what_has_not_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise fd.OutputError("full", remedy="Empty it.")
        return item

    with pytest.raises(fd.OutputError), _pool(1) as pool:
        list(_ahead(pool, work, range(1000), 5))

    assert begun[:3] == [0, 1, 2]
    assert len(begun) <= 2 + 5


def test_groups_of_results_take_along_what_needs_no_writing() -> None:
    done = Prediction(Path("a"), done_before=True)
    encoded = Encoded(Task(Path("b"), "b"), "key", Prediction(Path("b")))

    groups = list(_grouped([done, encoded, done, encoded, encoded, done, done], 2))

    assert groups == [[done], [encoded, done, encoded], [encoded, done, done]]


def test_batches_do_not_wait_for_photos_that_need_no_run(shared_bundle: Path) -> None:
    done = Prediction(Path("a"), done_before=True)

    with Segmenter(shared_bundle) as segmenter:
        batches = list(collate(segmenter, [done] * 100))

    assert [len(batch.entries) for batch in batches] == [64, 36]
    assert all(batch.feed is None for batch in batches)


@given(st.lists(st.sampled_from(["a", "A", "a-2", "a-3", "b", "b-2"]), max_size=12))
def test_names_are_distinct_whatever_the_case(stems: list[str]) -> None:
    images = [Path(str(i)) / f"{stem}.png" for i, stem in enumerate(stems)]

    names = [task.name.casefold() for task in tasks_of(images)]

    assert len(set(names)) == len(names)
    assert {stem.casefold() for stem in stems} <= set(names)


def test_photos_that_come_twice_are_done_once(shared_bundle: Path, photos: list[Path], tmp_path: Path) -> None:
    found = list(fd.predict(shared_bundle, [photos[0]] * 5 + photos[:2], fd.PredictOptions(tmp_path / "out")))

    assert [p.image for p in found] == photos[:2]
