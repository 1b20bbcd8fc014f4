"""What a job's processes do to be fast: how many rows at a time, and which thread encodes."""

from __future__ import annotations

import gc
import threading
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq
import pytest

from artifacts.predictor import Predictor
from serving.scoring import batch_size, job, scorer
from serving.scoring.batch_size import Batches
from serving.scoring.chunks import Chunk
from serving.scoring.job import Options, score
from serving.scoring.processes import without_collection
from serving.scoring.scorer import Scorer, Work
from serving.scoring.units import Unit
from tests.scored import parts_of

ROWS = 400


class Clock:
    """A model's thread, whose time passes as the model says: seconds of a batch of so many rows."""

    def __init__(self, seconds: Callable[[int], float]) -> None:
        self._seconds, self._now, self.sizes = seconds, 0.0, []

    def thread_time(self) -> float:
        return self._now

    def model(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.sizes.append(len(rows))
        self._now += self._seconds(len(rows))
        return rows, rows


def found_batch(
    monkeypatch: pytest.MonkeyPatch,
    seconds: Callable[[int], float],
    largest: int = 1024,
    pieces: int = 60_000,
) -> tuple[int, int]:
    """The size that is found, and the largest that was tried."""
    clock = Clock(seconds)
    monkeypatch.setattr(batch_size, "time", clock)
    predictor = Predictor(
        bundle=SimpleNamespace(manifest=SimpleNamespace(max_batch_size=largest)),
        golden=None,
        backend="onnx",
        device="cpu",
        checked=None,
        model=clock.model,
    )
    batches = Batches(predictor)
    rows = np.arange(60_000.0)[:, np.newaxis]
    answers = [
        found
        for start in range(0, len(rows), pieces)
        for found in batches.probabilities(rows[start : start + pieces])
    ]
    np.testing.assert_array_equal(np.concatenate(answers), rows)
    return max(clock.sizes[-2:]), max(clock.sizes)


def test_a_short_call_is_worth_more_rows_as_it_costs_something_itself(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    # One and a half microseconds a row, whatever the batch: alone, all sizes would be as good.
    assert found_batch(monkeypatch, lambda rows: 1.5e-6 * rows) == (512, 1024)
    assert found_batch(monkeypatch, lambda rows: 1.5e-6 * rows, largest=100) == (100, 100)
    # At a fifth of a millisecond a row the call no longer matters.
    assert found_batch(monkeypatch, lambda rows: 2e-4 * rows)[0] == 8


def test_larger_ones_are_not_tried_when_the_caches_are_too_small(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def leaves_the_caches(rows: int) -> float:
        return rows * (1e-6 if rows <= 128 else 2e-6)

    assert found_batch(monkeypatch, leaves_the_caches) == (128, 256)


def test_of_a_slow_model_nothing_larger_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    assert found_batch(monkeypatch, lambda rows: 0.02 * rows) == (8, 8)
    assert found_batch(monkeypatch, lambda rows: 1e-3 * rows) == (8, 32)


def test_no_size_is_tried_that_a_piece_does_not_have(monkeypatch: pytest.MonkeyPatch) -> None:
    """What comes in small pieces is answered by what was the best of them so far."""
    assert found_batch(monkeypatch, lambda rows: 1.5e-6 * rows, pieces=300) == (256, 256)


def test_a_size_that_was_asked_for_is_taken(cancer: Predictor) -> None:
    answers = Batches(cancer, 7).probabilities(cancer.golden.raw[:20])
    assert [len(found) for found in answers] == [7, 7, 6]


@pytest.mark.parametrize("changed", [{"threads": 2}, {"device": "cuda"}, {"backend": "torch"}])
def test_no_size_is_tried_where_the_batch_may_show_in_the_bits(
    cancer: Predictor, changed: dict[str, Any]
) -> None:
    raw = np.repeat(cancer.golden.raw[:1], cancer.manifest.max_batch_size + 9, axis=0)
    answers = Batches(replace(cancer, **changed)).probabilities(raw)
    assert [len(found) for found in answers] == [cancer.manifest.max_batch_size, 9]
    assert len(Batches(cancer).probabilities(raw)[0]) == 8


@pytest.fixture
def table(cancer: Predictor) -> pa.Table:
    picked = np.random.default_rng(0).integers(0, len(cancer.golden.raw), ROWS)
    names = [column.name for column in cancer.manifest.input.columns]
    return pa.table(dict(zip(names, cancer.golden.raw[picked].T, strict=True)))


def parquet(table: pa.Table, folder: Path) -> Path:
    pq.write_table(table, folder / "rows.parquet", row_group_size=ROWS // 4)
    return folder / "rows.parquet"


def stream(table: pa.Table, folder: Path) -> Path:
    with pa.output_stream(folder / "rows.csv.gz", compression="gzip") as file:
        pyarrow.csv.write_csv(table, file)
    return folder / "rows.csv.gz"


@pytest.mark.parametrize(
    ("written", "decoders", "aside"),
    [(parquet, 0, False), (parquet, 1, True), (parquet, 3, True), (stream, 0, True)],
)
def test_the_models_thread_encodes_where_no_other_is_free_for_it(
    cancer: Predictor,
    table: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    written: Callable[[pa.Table, Path], Path],
    decoders: int,
    aside: bool,
) -> None:
    """What is read as a stream has one process, whose other threads have cores then."""
    source = [str(written(table, tmp_path))]
    score(cancer, source, tmp_path / "expected", Options(workers=1))
    where = set()

    def encode(*arguments: Any, **named: Any) -> Chunk:
        where.add(threading.current_thread() is not threading.main_thread())
        return encoded(*arguments, **named)

    encoded = scorer.encode
    monkeypatch.setattr(scorer, "encode", encode)

    def engine(work: Work, units: Iterator[Unit], count: int, done: Any, recorded: Any) -> None:
        Scorer(replace(work, decoders=decoders), cancer).run(units, done, recorded)

    score(cancer, source, tmp_path / "out", Options(), engine=engine)
    assert where == {aside}
    assert parts_of(tmp_path / "out").equals(parts_of(tmp_path / "expected"))


@pytest.mark.parametrize(
    ("device", "cores", "processes", "decoders"),
    [
        ("cpu", 2, 2, 0), ("cpu", 2, 1, 1), ("cpu", 3, 2, 0), ("cpu", 4, 2, 1), ("cpu", 1, 1, 0),
        ("cuda", 1, 1, 1), ("cuda", 16, 1, 15), ("cuda", 64, 2, 16),
    ],
)  # fmt: skip
def test_threads_encode_where_the_processes_leave_cores(
    cancer: Predictor,
    table: pa.Table,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    cores: int,
    processes: int,
    decoders: int,
) -> None:
    given = []

    def engine(work: Work, units: Iterator[Unit], count: int, done: Any, recorded: Any) -> None:
        given.append((count, work.decoders))
        Scorer(work, cancer).run(units, done, recorded)

    there = {"cpu": cores, "cuda": processes}
    monkeypatch.setattr(job, "workers_on", there.__getitem__)
    source = [str(parquet(table, tmp_path))]
    predictor = replace(cancer, device=device)
    score(predictor, source, tmp_path / "out", Options(workers=processes), engine=engine)
    assert given == [(processes, decoders)]


def test_a_short_job_has_one_process_and_a_core_for_its_encoding(
    cancer: Predictor, table: pa.Table, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However many processes there might be."""
    given = []

    class Watched(Scorer):
        def __init__(self, work: Work, predictor: Predictor) -> None:
            given.append(work.decoders)
            super().__init__(work, predictor)

    monkeypatch.setattr(job, "Scorer", Watched)
    monkeypatch.setattr(job, "workers_on", lambda device: 2)
    np.save(tmp_path / "rows.npy", np.stack(table.columns, axis=1)[:9])
    score(cancer, [str(tmp_path / "rows.npy")], tmp_path / "out", Options(workers=2))
    assert given == [1]


@pytest.mark.parametrize("was", [True, False])
def test_garbage_is_looked_for_again_after_a_start(was: bool) -> None:
    """Where it was before."""
    before = gc.isenabled()
    try:
        (gc.enable if was else gc.disable)()
        with without_collection():
            assert not gc.isenabled()
        assert gc.isenabled() == was
    finally:
        (gc.enable if before else gc.disable)()
        gc.unfreeze()
