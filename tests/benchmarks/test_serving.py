"""The serving benchmark itself: what it reports is what its clients and its server saw."""

from collections import Counter
from pathlib import Path

import pytest

from benchmarks.serving import Latencies, Load, grpc_asker, http_asker, plain_asker, serving, take_turns, under_load
from tests.fcn_deploy.serving.clients import noise


def test_latencies_are_split_into_run_and_rest() -> None:
    row = Latencies(total=[10.0, 12.0, 30.0], run=[8.0, 9.0, 10.0])

    assert row.cells() == ("12.00", "29.64", "9.00", "3.00", "16.60", "19.66")


def test_memory_growth_is_that_of_the_second_half() -> None:
    load = Load(Counter(answered=5, refused=2), (100e6, 150e6, 200e6, 190e6, 210e6), 60.0)

    assert load.lines() == [
        "64 clients, half HTTP and half gRPC, for 60 s: 5 answered, 2 refused",
        "server's memory, MB: 100, 150, 200, 190, 210; in the second half +5.0%",
    ]


def test_a_real_server_is_asked(shared_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("benchmarks.serving.WARM_UP", 1)
    pixels = noise()
    with serving(shared_bundle) as server, plain_asker(server, pixels) as plain:
        askers = {"plain": plain, "HTTP": http_asker(server, pixels), "gRPC": grpc_asker(server, pixels)}
        found = take_turns(askers, 3)
        load = under_load(server, pixels, 0.5)

    for row in found.values():
        assert len(row.total) == 3
        assert all(total > run > 0 for total, run in zip(row.total, row.run, strict=True))
    assert set(load.outcomes) <= {"answered", "refused"}
    assert load.outcomes["answered"] > 0
    assert min(load.memory_bytes) > 50e6
