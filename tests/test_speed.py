"""How fast a release says that its formats are."""

from __future__ import annotations

import time

import numpy as np

from training.speed import measure_speed

ROWS = np.zeros((256, 3))


class Model:
    """Answers in so many seconds; some of its calls wait for another process."""

    def __init__(self, seconds: float, waits: tuple[int, ...] = ()) -> None:
        self.seconds, self.waits, self.sizes = seconds, waits, []

    def __call__(self, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        self.sizes.append(len(rows))
        time.sleep(0.3 if len(self.sizes) in self.waits else self.seconds)
        return rows, rows


def test_rates_are_of_one_row_and_of_the_largest_batch() -> None:
    models = {"quick": Model(0.001), "slow": Model(0.002)}
    found = measure_speed(models, ROWS)
    assert found.cpu
    for name, model in models.items():
        speed = found.formats[name]
        assert speed.batch_size == 256 == max(model.sizes)
        assert 0 < speed.alone <= 1 / model.seconds
        assert speed.alone < speed.batched <= 256 / model.seconds


def test_a_call_that_waited_for_another_process_does_not_make_the_batch_small() -> None:
    # The first two calls warm it up; the third is the first that is timed.
    found = measure_speed({"a": Model(0.0, waits=(3, 7))}, ROWS)
    assert found.formats["a"].batch_size == 256


def test_of_a_slow_model_fewer_rows_are_answered_at_once() -> None:
    found = measure_speed({"slow": Model(0.06), "fast": Model(0.0)}, ROWS)
    assert {speed.batch_size for speed in found.formats.values()} == {1}
