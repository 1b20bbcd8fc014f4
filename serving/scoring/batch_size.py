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
_TRIES = 5


def best_batch(predictor: Predictor) -> int:
    """The rows at which the model is fastest here, measured on golden rows.

    Where the batch may show in the bits it is the same for every run.
    """
    largest = predictor.manifest.max_batch_size
    if predictor.backend != "onnx" or predictor.device != "cpu":
        return largest
    rows = predictor.golden.raw
    sizes = [size for size in _BATCHES if size < largest] + [largest]
    best, least = sizes[0], float("inf")
    if sizes[0] * _seconds(predictor, rows[:1]) > _LONG_BATCH_S:
        # A slow model could have gone on with the job meanwhile.
        return best
    for size in sizes:
        batch = rows[np.arange(size) % len(rows)]
        predictor.model(batch)
        seconds = _CALL_S + min(_seconds(predictor, batch) for _ in range(_TRIES))
        if seconds / size < (1 - _WORTH) * least:
            best, least = size, seconds / size
        if seconds > _LONG_BATCH_S or seconds / size > (1 + _TOO_LARGE) * least:
            break
    return best


def _seconds(predictor: Predictor, batch: np.ndarray) -> float:
    # Of this thread: what else the cores do meanwhile is no matter.
    began = time.thread_time()
    predictor.model(batch)
    return time.thread_time() - began
