"""What a server counts, for Prometheus, in a registry of its own."""

import asyncio
import contextlib
import time
from collections.abc import Callable, Iterator
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from fcn_deploy.model_info import ModelInfo
from fcn_deploy.serving.protocol import ClientGoneError, RequestError

OK, INVALID, REFUSED, GONE, FAILED = _OUTCOMES = ("ok", "invalid", "refused", "gone", "failed")
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class RequestRecord:
    """The outcome of one request; it counts as failed until something else is set."""

    outcome = FAILED


class ServerMetrics:
    """Counters of one server.

    Outcomes of requests: `ok`; `invalid`, the client's fault; `refused`, a deliberate 503; `gone`, the client left;
    `failed`, the server's fault.

    Attributes:
        registry: what is exposed.
    """

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._requests = Counter(
            "fcn_deploy_requests", "Requests to infer.", ["protocol", "outcome"], registry=registry
        )  # fmt: skip
        self._latency = Histogram(
            "fcn_deploy_request_seconds", "From a request's head to its answer.", ["protocol"],
            buckets=_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self._run = Histogram("fcn_deploy_run_seconds", "One run of the model.", buckets=_BUCKETS_S, registry=registry)
        self._photos = Counter("fcn_deploy_photos", "Photos labelled.", registry=registry)
        for protocol in ("http", "grpc", "page"):
            for outcome in _OUTCOMES:
                self._requests.labels(protocol, outcome)

    def describe_model(self, name: str, info: ModelInfo, runner: str) -> None:
        """Expose which model is served."""
        facts = {"name": name, "network": str(info.network), "precision": str(info.precision), "runtime": runner}
        Info("fcn_deploy_model", "The model served.", registry=self.registry).info(
            facts | {"untrained": str(info.provenance.untrained).lower()}
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Expose a number that is read when the metrics are asked for."""
        Gauge(f"fcn_deploy_{name}", text, registry=self.registry).set_function(value)

    def count_run(self, photos: int, seconds: float) -> None:
        """Count one run of the model."""
        self._run.observe(seconds)
        self._photos.inc(photos)

    @contextlib.contextmanager
    def count_request(self, protocol: str) -> Iterator[RequestRecord]:
        """Count the request that the block answers; the block sets its outcome, or raises what decides it."""
        record, start = RequestRecord(), time.perf_counter()
        try:
            yield record
        except RequestError as error:
            record.outcome = outcome_of(error.status)
            raise
        except (ClientGoneError, asyncio.CancelledError):
            record.outcome = GONE
            raise
        finally:
            self._requests.labels(protocol, record.outcome).inc()
            self._latency.labels(protocol).observe(time.perf_counter() - start)

    def answered_requests(self) -> int:
        """Return how many requests were answered with labels."""
        samples = (sample for metric in self._requests.collect() for sample in metric.samples)
        return sum(int(s.value) for s in samples if s.name.endswith("_total") and s.labels["outcome"] == OK)


def outcome_of(status: int) -> str:
    """Return the outcome of a request that was answered with an HTTP status."""
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        return REFUSED
    return OK if status < HTTPStatus.BAD_REQUEST else INVALID if status < HTTPStatus.INTERNAL_SERVER_ERROR else FAILED
