"""Counts of one worker, of all, and as Prometheus reads them."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics import Counts, Histogram, Metrics

Samples = dict[tuple[str, tuple[str, ...]], float]


def samples_of(metrics: Metrics) -> Samples:
    """Each value by its name and its labels' values, in the labels' alphabetical order."""
    text = metrics.exposition("Classifier").decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            key = sample.name, tuple(value for _, value in sorted(sample.labels.items()))
            assert key not in found
            found[key] = sample.value
    return found


@pytest.fixture
def ended() -> int:
    """The number of a process that is no more."""
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    return process.pid


def worker(requests: int = 0, **gauges: int) -> Counts:
    """What a worker wrote that has served m@1."""
    counts = Counts(**gauges)
    metrics = Metrics(Path())
    metrics.counts = counts
    observer = metrics.model("m@1")
    for _ in range(requests):
        metrics.request("/predict", 200, 0.002)
        observer.answered(200, 0.002)
        observer.batch(3, 0.001, [0.0004])
    return counts


def test_all_workers_are_summed_and_gauges_only_of_those_that_live(
    tmp_path: Path, ended: int
) -> None:
    mine = Metrics(tmp_path)
    mine.counts = worker(1, connections=1, queued_rows=10, in_progress=100)
    (tmp_path / f"{os.getppid()}.json").write_bytes(
        msgspec.json.encode(worker(2, connections=2, queued_rows=20, in_progress=200))
    )
    (tmp_path / f"{ended}.json").write_bytes(
        msgspec.json.encode(worker(4, connections=4, queued_rows=40, in_progress=400))
    )
    mine.write()
    found = samples_of(mine)
    assert found["bentoml_service_request_total", ("/predict", "200", "Classifier")] == 7
    assert found["parityline_queue_seconds_count", ("m@1",)] == 7
    assert found["parityline_batch_rows_sum", ("m@1",)] == 21
    assert found["parityline_connections", ()] == 3
    assert found["parityline_queue_rows", ()] == 30
    assert found["bentoml_service_request_in_progress", ()] == 300


def test_requests_are_counted_by_route_and_status_and_what_was_shed_by_reason(
    tmp_path: Path,
) -> None:
    metrics = Metrics(tmp_path)
    for route, status in (("/predict", 200), ("/predict", 400), ("/v2/infer", 200)):
        metrics.request(route, status, 0.3)
    metrics.request("/predict", 200, 100.0)
    metrics.shed("rows")
    metrics.shed("rows")
    metrics.shed("wait")
    observer = metrics.model("digits@1")
    observer.answered(200, 0.5)
    observer.answered(503, 0.25)
    found = samples_of(metrics)
    name = "bentoml_service_request"
    assert found[f"{name}_total", ("/predict", "200", "Classifier")] == 2
    assert found[f"{name}_total", ("/predict", "400", "Classifier")] == 1
    assert found[f"{name}_total", ("/v2/infer", "200", "Classifier")] == 1
    seconds = f"{name}_duration_seconds"
    assert found[f"{seconds}_sum", ("/predict", "200", "Classifier")] == pytest.approx(100.3)
    for bound, count in (("0.25", 0), ("0.5", 1), ("10.0", 1), ("+Inf", 2)):
        key = f"{seconds}_bucket", ("/predict", "200", bound, "Classifier")
        assert found[key] == count
    assert found["parityline_shed_total", ("rows",)] == 2
    assert found["parityline_shed_total", ("wait",)] == 1
    counts = metrics.counts.models["digits@1"]
    assert (counts.succeeded, counts.failed) == (1, 1)
    assert (counts.succeeded_seconds, counts.failed_seconds) == (0.5, 0.25)


@given(values=st.lists(st.floats(1e-5, 30), max_size=30))
def test_buckets_cumulate_and_end_with_all(
    tmp_path_factory: pytest.TempPathFactory, values: list[float]
) -> None:
    metrics = Metrics(tmp_path_factory.getbasetemp())
    for value in values:
        metrics.request("/predict", 200, value)
    name = "bentoml_service_request_duration_seconds_bucket"
    buckets = {labels[2]: n for (of, labels), n in samples_of(metrics).items() if of == name}
    for bound, count in buckets.items():
        assert count == sum(value <= float(bound) for value in values)


def test_sums_never_fall_when_workers_end_and_others_start(tmp_path: Path, ended: int) -> None:
    metrics = Metrics(tmp_path)
    before: Samples = {}
    for file, counts in (
        (f"{os.getppid()}.json", worker(3, connections=5)),
        (f"{ended}.json", worker(2)),
        (f"{os.getppid()}.json", worker(4)),
        (None, None),
    ):
        if file:
            (tmp_path / file).write_bytes(msgspec.json.encode(counts))
        metrics.request("/predict", 200, 0.1)
        metrics.write()
        now = samples_of(metrics)
        for key, value in before.items():
            if key[0].endswith(("_total", "_count", "_sum", "_bucket")):
                assert now[key] >= value
        before = now
    assert before["bentoml_service_request_total", ("/predict", "200", "Classifier")] == 10


def test_labels_of_any_name_are_parsed_back(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    name = 'odd "name"\\ \n@1'
    metrics.model(name).batch(1, 0.1, [0.1])
    assert samples_of(metrics)["parityline_batch_rows_count", (name,)] == 1


def test_what_is_counted_while_the_sum_is_made_does_not_disturb_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The sum is made in a thread; the loop may meet a new status meanwhile."""
    metrics = Metrics(tmp_path)
    metrics.request("/predict", 200, 0.1)
    add = Histogram.add

    def meanwhile(self: Histogram, other: Histogram) -> None:
        for status in range(400, 420):
            metrics.request("/predict", status, 0.1)
            metrics.shed(str(status))
            metrics.model(f"m@{status}")
        add(self, other)

    metrics.model("m@1")
    metrics.shed("rows")
    monkeypatch.setattr(Histogram, "add", meanwhile)
    assert metrics.of_all_workers().requests["/predict 200"].counts[8] == 1


def test_the_file_is_whole_and_alone_after_each_write(tmp_path: Path) -> None:
    metrics = Metrics(tmp_path)
    for _ in range(3):
        metrics.request("/predict", 200, 0.1)
        metrics.write()
        (file,) = tmp_path.iterdir()
        assert file.name == f"{os.getpid()}.json"
        assert msgspec.json.decode(file.read_bytes(), type=Counts) == metrics.counts
    before = file.stat().st_ino
    metrics.write()
    assert file.stat().st_ino == before
