"""Reading ahead: in order, bounded, and over when its taker is."""

import threading
from collections.abc import Iterator

import pytest

from fcn_deploy.evaluation.loading import ahead


def test_results_come_in_order_and_from_another_thread() -> None:
    made = list(ahead(lambda item: (item, threading.get_ident()), range(20), 3))

    assert [item for item, _ in made] == list(range(20))
    assert threading.get_ident() not in {thread for _, thread in made}
    assert len({thread for _, thread in made}) == 1


@pytest.mark.parametrize("count", [1, 2, 5])
def test_no_more_than_so_many_are_taken_in_advance(count: int) -> None:
    taken = []

    def items() -> Iterator[int]:
        for item in range(20):
            taken.append(item)
            yield item

    for number, _ in enumerate(ahead(lambda item: item, items(), count)):
        assert len(taken) == min(number + 1 + count, 20)


def test_an_error_comes_up_in_its_place() -> None:
    results = ahead(lambda item: 1 // item, [1, 1, 0, 1], 2)

    assert [next(results), next(results)] == [1, 1]
    with pytest.raises(ZeroDivisionError):
        next(results)


def test_a_taker_that_leaves_ends_the_thread() -> None:
    before = threading.active_count()
    results = ahead(lambda item: item, range(1000), 2)
    next(results)
    assert threading.active_count() == before + 1

    results.close()

    assert threading.active_count() == before
