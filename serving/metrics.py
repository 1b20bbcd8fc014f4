"""What a service has done, for /metrics and for the statistics of the inference protocol.

Each worker counts in plain Python, as a request should cost no more, and writes its counts to a
file of its own in the service's run directory; whoever is asked adds the files up. The counts of a
worker that is gone stay, so that sums never fall; its gauges do not.
"""

from __future__ import annotations

import os
import tempfile
import time
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import msgspec
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
    Metric,
)
from prometheus_client.registry import Collector

_SECONDS = (
    0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip
_ROWS = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)


class Histogram(msgspec.Struct):
    """counts: of the values up to each bound, and above the last; not cumulated."""

    counts: list[int]
    total: float = 0.0

    @classmethod
    def over(cls, bounds: tuple[float, ...]) -> Histogram:
        """An empty one."""
        return cls([0] * (len(bounds) + 1))

    def add(self, other: Histogram) -> None:
        """Count what the other has counted."""
        self.counts = [
            mine + theirs for mine, theirs in zip(self.counts, other.counts, strict=True)
        ]
        self.total += other.total


class ModelCounts(msgspec.Struct):
    """Of one model version. seconds of failed requests are from their arrival to the error."""

    batch_rows: Histogram = msgspec.field(default_factory=lambda: Histogram.over(_ROWS))
    inference_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram.over(_SECONDS))
    queue_seconds: Histogram = msgspec.field(default_factory=lambda: Histogram.over(_SECONDS))
    succeeded: int = 0
    succeeded_seconds: float = 0.0
    failed: int = 0
    failed_seconds: float = 0.0
    last_inference_ms: int = 0


class Counts(msgspec.Struct):
    """Everything that one worker has counted; keys of requests are "route status"."""

    requests: dict[str, Histogram] = {}
    models: dict[str, ModelCounts] = {}
    shed: dict[str, int] = {}
    in_progress: int = 0
    queued_rows: int = 0
    connections: int = 0


class Metrics:
    """The counts of this worker, and those of all."""

    def __init__(self, directory: Path) -> None:
        """directory: the workers' files."""
        self.counts = Counts()
        self._directory = directory
        self._file = directory / f"{os.getpid()}.json"
        self._written = b""

    def request(self, route: str, status: int, seconds: float) -> None:
        """A request was answered, from its last byte in to its first byte out."""
        key = f"{route} {status}"
        histogram = self.counts.requests.get(key)
        if histogram is None:
            histogram = self.counts.requests[key] = Histogram.over(_SECONDS)
        histogram.counts[bisect_left(_SECONDS, seconds)] += 1
        histogram.total += seconds

    def shed(self, reason: str) -> None:
        """A request was refused for load."""
        self.counts.shed[reason] = self.counts.shed.get(reason, 0) + 1

    def model(self, reference: str) -> ModelObserver:
        """Counts batches and outcomes for one model version."""
        return ModelObserver(self.counts.models.setdefault(reference, ModelCounts()))

    def write(self) -> None:
        """Let the other workers see the counts."""
        content = msgspec.json.encode(self.counts)
        if content == self._written:
            return
        descriptor, name = tempfile.mkstemp(dir=self._directory, prefix=".")
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
        Path(name).replace(self._file)
        self._written = content

    def of_all_workers(self) -> Counts:
        """The sum of all workers' counts; of gauges, of those that live."""
        total = Counts()
        _add(total, self.counts, alive=True)
        for file in self._directory.glob("[0-9]*.json"):
            if file != self._file:
                other = msgspec.json.decode(file.read_bytes(), type=Counts)
                _add(total, other, alive=Path(f"/proc/{file.stem}").exists())
        return total

    def exposition(self, service: str) -> bytes:
        """The text that Prometheus reads, of all workers together."""
        registry = CollectorRegistry()
        registry.register(_Collected(self.of_all_workers(), service))
        return generate_latest(registry)


class ModelObserver:
    """Counts what one model version does."""

    def __init__(self, counts: ModelCounts) -> None:
        self._counts = counts

    def answered(self, status: int, seconds: float) -> None:
        """A request has its reply."""
        if status < 400:
            self._counts.succeeded += 1
            self._counts.succeeded_seconds += seconds
        else:
            self._counts.failed += 1
            self._counts.failed_seconds += seconds

    def batch(self, rows: int, seconds: float, waits: list[float]) -> None:
        """See `serving.batcher.Observer`."""
        counts = self._counts
        counts.batch_rows.counts[bisect_left(_ROWS, rows)] += 1
        counts.batch_rows.total += rows
        counts.inference_seconds.counts[bisect_left(_SECONDS, seconds)] += 1
        counts.inference_seconds.total += seconds
        counts.last_inference_ms = int(time.time() * 1000)
        queue = counts.queue_seconds
        for wait in waits:
            queue.counts[bisect_left(_SECONDS, wait)] += 1
            queue.total += wait


def _add(total: Counts, other: Counts, *, alive: bool) -> None:
    # Lists, as this runs in a thread while the loop goes on to count.
    for key, histogram in list(other.requests.items()):
        total.requests.setdefault(key, Histogram.over(_SECONDS)).add(histogram)
    for reason, count in list(other.shed.items()):
        total.shed[reason] = total.shed.get(reason, 0) + count
    for reference, theirs in list(other.models.items()):
        ours = total.models.setdefault(reference, ModelCounts())
        for name in ("batch_rows", "inference_seconds", "queue_seconds"):
            getattr(ours, name).add(getattr(theirs, name))
        for name in ("succeeded", "succeeded_seconds", "failed", "failed_seconds"):
            setattr(ours, name, getattr(ours, name) + getattr(theirs, name))
        ours.last_inference_ms = max(ours.last_inference_ms, theirs.last_inference_ms)
    if alive:
        total.in_progress += other.in_progress
        total.queued_rows += other.queued_rows
        total.connections += other.connections


class _Collected(Collector):
    """Counts in the library's terms. The first three keep BentoML's names and labels."""

    def __init__(self, counts: Counts, service: str) -> None:
        self._counts = counts
        self._service = service

    def collect(self) -> Iterator[Metric]:
        counts = self._counts
        labels = ["endpoint", "service_name", "http_response_code"]
        total = CounterMetricFamily("bentoml_service_request", "Requests answered", labels=labels)
        duration = HistogramMetricFamily(
            "bentoml_service_request_duration_seconds",
            "From a request's last byte in to its answer's first byte out",
            labels=labels,
        )
        for key, histogram in counts.requests.items():
            route, status = key.rsplit(" ", 1)
            values = [route, self._service, status]
            total.add_metric(values, sum(histogram.counts))
            duration.add_metric(values, *_cumulated(_SECONDS, histogram))
        yield total
        yield duration
        yield _gauge(
            "bentoml_service_request_in_progress", "Requests under way", counts.in_progress
        )
        yield _gauge("parityline_connections", "Open connections", counts.connections)
        yield _gauge("parityline_queue_rows", "Rows that wait for the model", counts.queued_rows)
        shed = CounterMetricFamily(
            "parityline_shed", "Requests refused for load", labels=["reason"]
        )
        for reason, count in counts.shed.items():
            shed.add_metric([reason], count)
        yield shed
        yield from self._of_models()

    def _of_models(self) -> Iterable[Metric]:
        for name, bounds, text in (
            ("batch_rows", _ROWS, "Rows of a batch"),
            ("inference_seconds", _SECONDS, "The model's time for a batch"),
            ("queue_seconds", _SECONDS, "A request's wait for its batch"),
        ):
            family = HistogramMetricFamily(f"parityline_{name}", text, labels=["model"])
            for reference, counts in self._counts.models.items():
                family.add_metric([reference], *_cumulated(bounds, getattr(counts, name)))
            yield family


def _cumulated(bounds: tuple[float, ...], histogram: Histogram) -> tuple[Any, float]:
    reached, buckets = 0, []
    names = [*(str(float(bound)) for bound in bounds), "+Inf"]
    for name, count in zip(names, histogram.counts, strict=True):
        reached += count
        buckets.append((name, float(reached)))
    return buckets, histogram.total


def _gauge(name: str, text: str, value: float) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, value=value)
