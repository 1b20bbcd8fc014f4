"""How fast each exported format answers here, on one thread."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch

from artifacts.backends import Model
from artifacts.manifest import FormatSpeed, Speed

# In all 2 x 3 formats x 5 rounds: a second or two, but for models that take longer to answer.
_ROUNDS, _ROUND_S = 5, 0.01
# No batch is larger than what takes about so long.
_BATCH_S, _FEW = 0.1, 32


def measure_speed(formats: Mapping[str, Model], rows: np.ndarray) -> Speed:
    """Rows a second, one at a time and in the largest batch, each the median of five rounds.

    formats: as `training.gate.open_formats` opens them. rows: as many raw rows as the largest batch
    has; of a large model fewer are answered at once. The formats take turns, so that a moment in
    which the machine is busy is no one's alone.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        size = min(_batch_size(model, rows) for model in formats.values())
        batches = {"alone": rows[:1], "batched": rows[:size]}
        rates: dict[str, dict[str, list[float]]] = {
            name: {way: [] for way in batches} for name in formats
        }
        for model in formats.values():
            model(batches["batched"])
        for _ in range(_ROUNDS):
            for name, model in formats.items():
                for way, batch in batches.items():
                    rates[name][way].append(_rate(model, batch))
    finally:
        torch.set_num_threads(threads)
    return Speed(
        cpu=_processor(),
        formats={
            name: FormatSpeed(
                **{way: float(f"{statistics.median(values):.3g}") for way, values in ways.items()},
                batch_size=size,
            )
            for name, ways in rates.items()
        },
    )


def _batch_size(model: Model, rows: np.ndarray) -> int:
    """How many of the rows take about _BATCH_S, at least one; all where they take less."""
    row = rows[:1]
    # TorchScript optimises in its first two calls.
    model(row), model(row)
    size, seconds = 1, _seconds(model, row)
    # What one row costs is mostly the call, but in large models.
    if _FEW * seconds < _BATCH_S:
        size, seconds = _FEW, _seconds(model, rows[:_FEW])
    return min(len(rows), max(1, int(size * _BATCH_S / seconds)))


def _seconds(model: Model, rows: np.ndarray) -> float:
    """Of the quickest of three calls: the others may have waited for another process."""
    taken = []
    for _ in range(3):
        began = time.perf_counter()
        model(rows)
        taken.append(time.perf_counter() - began)
    return min(taken)


def _rate(model: Model, batch: np.ndarray) -> float:
    """Rows a second, called again and again for _ROUND_S."""
    calls, began = 0, time.perf_counter()
    while (seconds := time.perf_counter() - began) < _ROUND_S or not calls:
        model(batch)
        calls += 1
    return len(batch) * calls / seconds


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return (names and names[0]) or platform.processor() or platform.machine() or "unknown"
