"""Prometheus metrics of one server process."""

from __future__ import annotations

from collections.abc import Iterable, Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector
from typing_extensions import override

from ..agent.rollout import Rollout
from ..segmenters.cache import EmbeddingCache

__all__ = ["Metrics"]

_ACTIONS = frozenset({
    "ANNOTATION_CREATED", "ANNOTATIONS_CREATED", "ANNOTATION_UPDATED", "ANNOTATION_DELETED", "ANNOTATIONS_DELETED",
    "PROJECT_CREATED", "PROJECT_UPDATED", "PROJECT_DELETED", "TASKS_CREATED", "TASKS_DELETED", "START_TRAINING",
})  # fmt: skip
_SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 25, 50, 100)


class Metrics:
    """Counters and timings, in a registry of their own so that several servers can live in one process."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.requests = Histogram(
            "segagent_request_seconds", "Time to answer a request.", ["endpoint", "status"],
            buckets=_SECONDS, registry=self._registry,
        )  # fmt: skip
        self.tasks = Counter(
            "segagent_tasks", "Tasks in /predict, by outcome (ok, failed, unfinished).", ["outcome"],
            registry=self._registry,
        )  # fmt: skip
        self.rollouts = Counter(
            "segagent_rollouts", "Finished rollouts, by why they stopped.", ["stopped"], registry=self._registry
        )
        self.clicks = Counter("segagent_clicks", "Clicks made by the agent.", registry=self._registry)
        self.events = Counter("segagent_events", "Webhook events stored.", ["action"], registry=self._registry)
        self.busy = Counter(
            "segagent_busy", "Predictions refused because too many were waiting.", registry=self._registry
        )
        self.running = Gauge("segagent_predictions_running", "Predictions being computed.", registry=self._registry)
        self.model = Gauge("segagent_model", "1 for the model version in use.", ["version"], registry=self._registry)

    def count_rollouts(self, rollouts: Iterable[Rollout]) -> None:
        """Count finished rollouts and their clicks."""
        for rollout in rollouts:
            self.rollouts.labels(rollout.stopped).inc()
            self.clicks.inc(len(rollout.trajectory.clicks))

    def count_event(self, action: str) -> None:
        """Count a webhook call. Anyone may send any action, so unknown ones share a label."""
        self.events.labels(action if action in _ACTIONS else "other").inc()

    def watch_cache(self, cache: EmbeddingCache) -> None:
        """Show a cache's statistics from now on."""
        self._registry.register(_CacheCollector(cache))

    def render(self) -> bytes:
        """The text that Prometheus scrapes."""
        return generate_latest(self._registry)


class _CacheCollector(Collector):
    """Reads the cache's own statistics whenever Prometheus asks."""

    def __init__(self, cache: EmbeddingCache) -> None:
        self._cache = cache

    @override
    def collect(self) -> Iterator[Metric]:
        stats = self._cache.stats
        requests = CounterMetricFamily(
            "segagent_embedding_requests", "Encoded images asked for, by where they were.", labels=["found"]
        )
        for where, count in (("memory", stats.hits), ("disk", stats.disk_hits), ("nowhere", stats.misses)):
            requests.add_metric([where], count)
        yield requests
        yield GaugeMetricFamily("segagent_embedding_hit_rate", "Share of them not encoded anew.", stats.hit_rate)
        yield GaugeMetricFamily("segagent_embedding_images", "Encoded images in memory.", stats.entries)
        yield GaugeMetricFamily("segagent_embedding_bytes", "Memory they may take.", stats.bytes)
