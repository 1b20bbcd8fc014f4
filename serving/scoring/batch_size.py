"""How many rows go through the model at a time."""

from __future__ import annotations

import time

import numpy as np

from artifacts.predictor import Predictor

# Rows that are tried, and how long one may take for larger ones to be tried.
_BATCHES = (8, 32, 128, 256, 512)
_LONG_BATCH_S = 0.03
# What a call costs in a job besides, about: the interpreter goes to another thread and comes back.
_CALL_S = 20e-6
# What a larger one has to win, to be worth its memory.
_WORTH = 0.02
# What is slower by so much a row has left the processor's caches: larger ones are slower still.
_TOO_LARGE = 0.05
# Of each size, after one that finds its memory.
_TRIES = 5


class Batches:
    """Answers a job's rows, at first in batches of one size after the other, then of the fastest.

    What it measures are the job's own batches: nothing is done twice. Where the batch may show in
    the bits it is the same for every run.
    """

    def __init__(self, predictor: Predictor, size: int | None = None) -> None:
        """size: rows at a time, where that is known."""
        self._predictor = predictor
        largest = predictor.manifest.max_batch_size
        self._size = size or largest
        self._left: list[int] = []
        alike = (predictor.backend, predictor.device, predictor.threads) == ("onnx", "cpu", 1)
        if size is None and alike:
            self._left = [each for each in _BATCHES if each < largest] + [largest]
        self._least = float("inf")
        self._seconds: list[float] = []

    def probabilities(self, raw: np.ndarray) -> list[np.ndarray]:
        """float32 [n, K] of each batch, in order. raw: [N, *input shape]."""
        found = []
        start = 0
        while self._left and start + self._left[0] <= len(raw):
            stop = start + self._left[0]
            found.append(self._timed(raw[start:stop]))
            start = stop
        rest = self._predictor.batches(raw[start:], self._size)
        return found + [probabilities for _, probabilities in rest]

    def _timed(self, batch: np.ndarray) -> np.ndarray:
        # Of this thread: what else the cores do meanwhile is no matter.
        began = time.thread_time()
        _, probabilities = self._predictor.model(batch)
        self._seconds.append(time.thread_time() - began)
        if len(self._seconds) > _TRIES:
            self._judge()
        return probabilities

    def _judge(self) -> None:
        """Whether this size is the best so far, and a larger one may be better still."""
        size = self._left.pop(0)
        seconds = _CALL_S + min(self._seconds[1:])
        self._seconds = []
        if seconds / size < (1 - _WORTH) * self._least:
            self._size, self._least = size, seconds / size
        if seconds > _LONG_BATCH_S or seconds / size > (1 + _TOO_LARGE) * self._least:
            self._left = []
