"""The loop over photos: in order, bounded, overlapping, and ended by the first error. What running a model loads."""

import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fcn_deploy as fd
from fcn_deploy.segmentation import CancellingThreadPool, map_ordered

DEADLOCK_S = 60


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(1, 5), st.integers(1, 4))
def test_map_ordered_keeps_the_order_and_its_distance(count: int, limit: int, threads: int) -> None:
    given_out: list[int] = []

    def items() -> Iterator[int]:
        for i in range(count):
            given_out.append(i)
            yield i

    with ThreadPoolExecutor(threads) as pool:
        for read, result in enumerate(map_ordered(pool, lambda i: i * i, items(), limit)):
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
        assert list(map_ordered(pool, work, [0, 1], 2)) == [True, True]


def test_an_error_drops_what_has_not_begun() -> None:
    begun: list[int] = []

    def work(item: int) -> int:
        begun.append(item)
        if item == 2:
            raise fd.OutputError("full", remedy="Empty it.")
        return item

    with pytest.raises(fd.OutputError), CancellingThreadPool(1) as pool:
        list(map_ordered(pool, work, range(1000), 5))

    assert begun[:3] == [0, 1, 2]
    assert len(begun) <= 2 + 5


def test_what_only_runs_a_model_loads_neither_pytorch_nor_the_library_of_graphs(shared_bundle: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from fcn_deploy.segmentation import Segmenter\n"
        "with Segmenter(Path(sys.argv[1])) as segmenter: segmenter.segment(segmenter.empty_canvas())\n"
        "print(*sorted(m for m in sys.modules if '.' not in m))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, shared_bundle], capture_output=True, text=True, check=True, timeout=60
    )

    assert {"onnx", "onnxruntime"} <= set(done.stdout.split())
    assert not {"torch", "onnx_ir", "sympy"} & set(done.stdout.split())
