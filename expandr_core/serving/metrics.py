"""Metrics of the server, for Prometheus."""

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    ProcessCollector,
    generate_latest,
)

from expandr_core.serving.answers import Answer
from expandr_core.serving.opened import Served

_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64, 128)


class Metrics:
    """Counters and histograms, all of whose names begin with expandr_, and those of the process."""

    def __init__(self) -> None:
        self._registry = registry = CollectorRegistry()
        ProcessCollector(registry=registry)
        self.requests = Counter(
            "expandr_requests", "Requests.", ["path", "status"], registry=registry
        )
        self.seconds = Histogram(
            "expandr_request_seconds", "Seconds of a request.", ["path"],
            buckets=_SECONDS, registry=registry,
        )  # fmt: skip
        self.together = Histogram(
            "expandr_batch_requests", "Requests computed together.",
            buckets=_SIZES, registry=registry,
        )  # fmt: skip
        self.waiting = Gauge("expandr_waiting_requests", "Requests that wait.", registry=registry)
        self._expansions = Counter(
            "expandr_expansions", "Expansions, by whether they were remembered.", ["from"],
            registry=registry,
        )  # fmt: skip
        self._decisions = Counter(
            "expandr_gate_decisions", "What the gate decided.", ["decision"], registry=registry
        )
        self._version = Gauge(
            "expandr_version", "What is served; 1 for it.", ["model", "version", "run"],
            registry=registry,
        )  # fmt: skip
        self.exchanges = Counter(
            "expandr_exchanges", "New versions, by whether they are served now.", ["result"],
            registry=registry,
        )  # fmt: skip

    def serve(self, served: Served) -> None:
        """Note what is served from now on."""
        self._version.clear()
        self._version.labels(served.model, served.version, served.run).set(1)

    def expanded(self, remembered: bool) -> None:
        """Note an expansion."""
        self._expansions.labels("memory" if remembered else "llm").inc()

    def answered(self, answer: Answer) -> None:
        """Note an answer to a question."""
        if answer.expansion:
            self.expanded(answer.remembered)
        if answer.decision:
            self._decisions.labels(answer.decision).inc()

    def text(self) -> bytes:
        """Return all in Prometheus's format."""
        return generate_latest(self._registry)
