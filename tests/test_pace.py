"""How long a batch should take, from what was measured."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.predictor import Predictor
from serving.metrics import Metrics
from serving.pace import Pace
from serving.served import Prepared, serve_model
from serving.settings import Settings

SECONDS = st.floats(1e-6, 10, allow_nan=False)


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """A time that passes only where a test says so."""
    now = [100.0]
    monkeypatch.setattr("serving.pace.time.perf_counter", lambda: now[0])
    return now


def test_sizes_double_up_to_the_largest_and_every_batch_fits(clock: list[float]) -> None:
    sizes: list[int] = []

    def run(raw: np.ndarray) -> None:
        sizes.append(len(raw))
        clock[0] += 0.002

    pace = Pace.measure(run, np.zeros((3, 5)), 11)
    assert sorted(set(sizes)) == [1, 2, 4, 8, 11]
    assert pace.seconds(1, 11) == pytest.approx(0.002)


def test_a_slow_model_is_not_measured_further(clock: list[float]) -> None:
    sizes: set[int] = set()

    def run(raw: np.ndarray) -> None:
        sizes.add(len(raw))
        clock[0] += 0.12 if len(raw) > 1 else 0.001

    assert Pace.measure(run, np.zeros((1, 1)), 4096).seconds(4, 4) == pytest.approx(0.24)
    assert sizes == {1, 2}


def test_between_sizes_the_line_is_straight_and_beyond_them_too() -> None:
    pace = Pace([1, 2, 4], [1.0, 1.5, 2.5])
    assert [pace.seconds(n, 8) for n in (0, 1, 2, 3, 4)] == [0.0, 1.0, 1.5, 2.0, 2.5]
    assert pace.seconds(6, 8) == pytest.approx(3.75)
    # Two full batches of 4, and one row.
    assert pace.seconds(9, 4) == pytest.approx(6.0)


@pytest.mark.parametrize(
    ("seconds", "best"),
    [
        ([1.0, 1.0, 1.0], 4),  # a batch costs what a row costs
        ([1.0, 2.0, 4.0], 1),  # rows cost the same in any batch
        ([1.0, 1.2, 2.3], 2),  # 0.6 a row is about as good as 0.575
    ],
)
def test_the_best_batch_is_the_smallest_that_is_about_as_fast(
    seconds: list[float], best: int
) -> None:
    pace = Pace([1, 2, 4], seconds)
    assert pace.best_batch_rows(0.0) == pace.efficient_rows() == best


def test_a_batch_that_is_short_all_the_same_may_be_larger() -> None:
    pace = Pace([1, 2, 4, 8], [1.0, 2.0, 4.0, 8.0])
    assert [pace.best_batch_rows(short_s) for short_s in (0.5, 2.5, 4.0, 99.0)] == [1, 2, 4, 8]


def test_some_rows_are_run_together_if_they_take_no_longer_for_it() -> None:
    pace = Pace([1, 2, 4, 8], [1.0, 2.0, 4.0, 8.0])
    assert [pace.best_batch_rows(0.0, together) for together in (1, 3, 5, 8)] == [1, 2, 4, 8]
    # 1.2 a row is much longer than 1.
    assert Pace([1, 2, 4], [1.0, 2.0, 4.8]).best_batch_rows(0.0, 5) == 2
    # What is short is no matter.
    assert Pace([1, 2, 4], [1.0, 2.0, 4.8]).best_batch_rows(5.0, 5) == 4


@pytest.mark.parametrize(
    ("seconds", "batch_rows", "max_wait_s"),
    [
        # Rows of a large network: some together, and no longer a queue for that.
        ([0.02, 0.04, 0.078, 0.154], 4, 0.4),
        ([0.3], 1, 6.0),
        # A small one's: as many as take a millisecond.
        ([15e-6, 16e-6, 18e-6, 22e-6], 8, 0.03),
        # A batch costs about what a row costs.
        ([0.01, 0.011, 0.012, 0.013], 8, 0.26),
    ],
)
def test_what_waits_and_what_is_joined_suits_the_models_pace(
    digits: Predictor, tmp_path: Path, seconds: list[float], batch_rows: int, max_wait_s: float
) -> None:
    pace = Pace([1, 2, 4, 8][: len(seconds)], seconds)
    model = serve_model(Prepared(digits, pace), Settings(), Metrics(tmp_path))
    assert model.limits.batch_rows == batch_rows
    assert model.limits.max_wait_s == pytest.approx(max_wait_s)


def test_batches_of_a_size_that_was_asked_for_are_let_wait_for(
    digits: Predictor, tmp_path: Path
) -> None:
    pace = Pace([1, 2, 4, 8], [0.02, 0.04, 0.08, 0.16])
    chosen = Settings(max_batch_size=64)
    limits = serve_model(Prepared(digits, pace), chosen, Metrics(tmp_path)).limits
    # Three of 64 rows.
    assert limits.batch_rows == 64 and limits.max_wait_s == pytest.approx(3 * 1.28)


@given(measured=st.lists(SECONDS, min_size=3, max_size=3), batch_rows=st.integers(1, 4))
def test_the_more_rows_the_longer_where_batches_are(measured: list[float], batch_rows: int) -> None:
    pace = Pace([1, 2, 4], sorted(measured))
    times = [pace.seconds(rows, batch_rows) for rows in range(0, 4 * batch_rows, batch_rows)]
    assert times == sorted(times) and times[0] == 0


def test_the_pace_follows_a_slower_machine_and_forgets_one_bad_batch() -> None:
    pace = Pace([1, 4], [1.0, 4.0])
    pace.observe(4, 4000.0, 4)
    assert pace.seconds(4, 4) < 8
    for _ in range(200):
        pace.observe(2, 6.0, 4)
    assert pace.seconds(2, 4) == pytest.approx(6.0, rel=0.01)
    for _ in range(200):
        pace.observe(1, 1.0, 4)
    assert pace.seconds(4, 4) == pytest.approx(4.0, rel=0.01)
