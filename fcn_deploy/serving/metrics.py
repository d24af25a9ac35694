"""Prometheus metrics of a server, in their own registry."""

import asyncio
import contextlib
from collections.abc import Callable, Iterator
from http import HTTPStatus

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info, ProcessCollector

from fcn_deploy.model_info import ModelInfo
from fcn_deploy.serving.protocol import ClientGoneError, RequestError

_PROTOCOLS = ("http", "grpc", "page")
# The client's fault; a deliberate 503; the client left; the server's fault.
OK, INVALID, REFUSED, GONE, FAILED = _OUTCOMES = ("ok", "invalid", "refused", "gone", "failed")
_BUCKETS_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)


class ServerMetrics:
    """Counters of one server, exposed in `registry`."""

    def __init__(self) -> None:
        self.registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self._counts = Counter("fcn_deploy_requests", "Requests to infer.", ["protocol", "outcome"], registry=registry)
        self._latency = Histogram(
            "fcn_deploy_request_seconds", "From a request's head to its answer.", ["protocol"],
            buckets=_BUCKETS_S, registry=registry,
        )  # fmt: skip
        self.run = Histogram("fcn_deploy_run_seconds", "One run of the model.", buckets=_BUCKETS_S, registry=registry)
        self.photos = Counter("fcn_deploy_photos", "Photos labelled.", registry=registry)
        for protocol in _PROTOCOLS:
            for outcome in _OUTCOMES:
                self._counts.labels(protocol, outcome)

    def describe_model(self, name: str, info: ModelInfo, runner: str) -> None:
        """Expose which model is served."""
        facts = {"name": name, "network": str(info.network), "precision": str(info.precision), "runtime": runner}
        Info("fcn_deploy_model", "The model served.", registry=self.registry).info(
            facts | {"untrained": str(info.provenance.untrained).lower()}
        )

    def watch(self, name: str, text: str, value: Callable[[], float]) -> None:
        """Expose a number that is read when the metrics are asked for."""
        Gauge(f"fcn_deploy_{name}", text, registry=self.registry).set_function(value)

    @contextlib.contextmanager
    def count_request(self, protocol: str) -> Iterator[None]:
        """Count the request that the block answers; what the block raises decides the outcome."""
        outcome = FAILED
        try:
            with self._latency.labels(protocol).time():
                yield
            outcome = OK
        except RequestError as error:
            outcome = REFUSED if error.status == HTTPStatus.SERVICE_UNAVAILABLE else INVALID
            raise
        except (ClientGoneError, asyncio.CancelledError):
            outcome = GONE
            raise
        finally:
            self._counts.labels(protocol, outcome).inc()

    def answered_requests(self) -> int:
        """Return how many requests were answered with labels."""
        labels = [{"protocol": protocol, "outcome": OK} for protocol in _PROTOCOLS]
        return int(sum(self.registry.get_sample_value("fcn_deploy_requests_total", each) or 0 for each in labels))
