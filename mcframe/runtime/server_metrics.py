"""Counters and times of a server for Prometheus."""

from __future__ import annotations

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from mcframe.runtime.report import SessionReport

_SECONDS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 30, 60)


class ServerMetrics:
    """Metrics of one server, in a registry of its own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self.requests = Counter(
            "mcframe_requests", "Answered requests.", ("endpoint", "status"), registry=self.registry
        )
        self.running = Gauge("mcframe_requests_running", "Requests that generate.", registry=self.registry)
        self.open_sessions = Gauge("mcframe_sessions_open", "Sessions that are open.", registry=self.registry)
        self.appended = Counter("mcframe_tokens_appended", "Tokens of prompts.", registry=self.registry)
        self.generated = Counter("mcframe_tokens_generated", "Tokens that were sampled.", registry=self.registry)
        self._first = Histogram(
            "mcframe_first_token_seconds", "Time to append and sample the first token.", buckets=_SECONDS,
            registry=self.registry,
        )  # fmt: skip
        self._token = Histogram(
            "mcframe_token_seconds", "Time of each later token.", buckets=_SECONDS, registry=self.registry
        )
        names = {
            "history_tokens": "Tokens of the history.",
            "dropped_tokens": "Tokens of the history that the context does not cover.",
            "swap_rate": "Mean fraction of entries that a refocus replaced.",
            "residency_refocuses": "Mean refocuses for which an expanded block kept its detail.",
            "read_entries_per_token": "Entries that were read a generated token.",
        }
        self._last = {
            name: Gauge(f"mcframe_last_{name}", f"{text} Of the last request.", registry=self.registry)
            for name, text in names.items()
        }
        self._entries = Gauge(
            "mcframe_last_entries", "Entries of the context of the last request.", ("lod",), registry=self.registry
        )

    def token(self, seconds: float, *, first: bool) -> None:
        """Count a sampled token and its time."""
        self.generated.inc()
        (self._first if first else self._token).observe(seconds)

    def session(self, report: SessionReport) -> None:
        """Keep the state of the session that was used last."""
        values = (report.history, report.dropped, report.swap_rate, report.residency, report.read_entries)
        for gauge, value in zip(self._last.values(), values, strict=True):
            gauge.set(value)
        for lod, count in report.entries.items():
            self._entries.labels(str(lod)).set(count)

    def text(self) -> bytes:
        """Return all metrics in Prometheus's format."""
        return generate_latest(self.registry)
