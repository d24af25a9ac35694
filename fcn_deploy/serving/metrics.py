"""What a server counts, as Prometheus reads it: in a registry of its own."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from fcn_deploy.model_info import ModelInfo
from fcn_deploy.serving.refusals import Refusal

OK, INVALID, REFUSED, GONE, FAILED = "ok", "invalid", "refused", "gone", "failed"
_OUTCOMES = (OK, INVALID, REFUSED, GONE, FAILED)
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class Request:
    """One request while it is answered; `outcome` is what it is counted as."""

    outcome = FAILED


class Metrics:
    """Counters of one server.

    Outcomes of requests: `ok`; `invalid`, the client's fault; `refused`, the deliberate 503; `gone`, the client left;
    `failed`, the server's fault.

    Attributes:
        registry: what is exposed.
    """

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        ProcessCollector(registry=self.registry)
        labels = ("protocol", "outcome")
        self._requests = Counter("fcn_deploy_requests", "Requests to infer.", labels, registry=self.registry)
        self._latency = Histogram(
            "fcn_deploy_request_seconds", "From a request's head to its answer.", ["protocol"],
            buckets=_SECONDS, registry=self.registry,
        )  # fmt: skip
        self._run = Histogram(
            "fcn_deploy_run_seconds", "One run of the model.", buckets=_SECONDS, registry=self.registry
        )
        self._photos = Counter("fcn_deploy_photos", "Photos labelled.", registry=self.registry)
        for protocol in ("http", "grpc", "page"):
            for outcome in _OUTCOMES:
                self._requests.labels(protocol, outcome)

    def describe(self, name: str, info: ModelInfo, runner: str) -> None:
        """Say which model is served."""
        facts = {"name": name, "network": str(info.network), "precision": str(info.precision), "runtime": runner}
        Info("fcn_deploy_model", "The model served.", registry=self.registry).info(
            facts | {"untrained": str(info.provenance.untrained).lower()}
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Expose a number that is read when it is asked for."""
        Gauge(f"fcn_deploy_{name}", text, registry=self.registry).set_function(value)

    def ran(self, photos: int, seconds: float) -> None:
        """Count one run of the model."""
        self._run.observe(seconds)
        self._photos.inc(photos)

    @contextlib.contextmanager
    def request(self, protocol: str) -> Iterator[Request]:
        """Count what the block answers; its outcome is what the block sets, or follows from what it raises."""
        request, start = Request(), time.perf_counter()
        try:
            yield request
        except Refusal as refusal:
            request.outcome = outcome_of(refusal.status)
            raise
        except asyncio.CancelledError:
            request.outcome = GONE
            raise
        finally:
            self._requests.labels(protocol, request.outcome).inc()
            self._latency.labels(protocol).observe(time.perf_counter() - start)

    def answered(self) -> int:
        """Requests that were answered with labels."""
        samples = (sample for metric in self._requests.collect() for sample in metric.samples)
        return sum(int(s.value) for s in samples if s.name.endswith("_total") and s.labels["outcome"] == OK)


def outcome_of(status: int) -> str:
    """What a request that got an HTTP status is counted as."""
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return REFUSED
    return OK if status < HTTPStatus.BAD_REQUEST else INVALID if status < HTTPStatus.INTERNAL_SERVER_ERROR else FAILED
