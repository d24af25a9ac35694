"""Servers on free ports of 127.0.0.1, one for all tests that leave it as it was."""

import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

import fcn_deploy as fd
from fcn_deploy.runtime.base import Arrays
from fcn_deploy.segmentation import Segmenter

OPTIONS = fd.ServeOptions(http_port=0, grpc_port=0, name="net")


@pytest.fixture(scope="session")
def server(shared_bundle: Path) -> Iterator[fd.Server]:
    """A server of the narrow bundle for 96x96, whose clients have a second."""
    with fd.Server(shared_bundle, replace(OPTIONS, client_timeout_s=1.0)) as started:
        yield started


class Held:
    """Runs of a model that wait until they are let go."""

    def __init__(self) -> None:
        self.going = threading.Event()
        self.begun = threading.Semaphore(0)
        self.feeds: list[Arrays] = []


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[Held]:
    """Every run but the warm-up waits for `going`; `begun` counts those that have begun."""
    state = Held()

    class Waiting(Segmenter):
        warm = False

        def run(self, feed: Arrays) -> Arrays:
            if self.warm:
                state.feeds.append(feed)
                state.begun.release()
                assert state.going.wait(30)
            self.warm = True
            return super().run(feed)

    monkeypatch.setattr("fcn_deploy.serving.model.Segmenter", Waiting)
    yield state
    state.going.set()
