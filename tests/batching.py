"""Models, callers, observers and clocks for a batcher."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from serving.batcher import Answer, Batcher, Limits
from serving.pace import Pace

PATIENCE_S = 20.0
Outcome = Answer | Exception


async def answer(batcher: Batcher, raw: np.ndarray) -> Answer:
    """What `submit` delivers; cancelling this cancels the request."""
    future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()

    def deliver(outcome: Answer | Exception) -> None:
        if future.done():
            return
        if isinstance(outcome, Exception):
            future.set_exception(outcome)
        else:
            future.set_result(outcome)

    ticket = batcher.submit(raw, deliver)
    try:
        return await future
    finally:
        ticket.cancel()


class Seen:
    """What the batcher told its observer."""

    def __init__(self) -> None:
        self.rows: list[int] = []
        self.waits = 0

    def batch(self, rows: int, seconds: float, waits: list[float]) -> None:
        self.rows.append(rows)
        self.waits += len(waits)


def double(raw: np.ndarray) -> Answer:
    if (raw < 0).any():
        raise RuntimeError("bad row")
    return raw * 2, raw * 3


def batcher_of(
    run: Callable[[np.ndarray], Answer],
    *,
    on_loop: bool = False,
    on_loop_s: float | None = None,
    batch_s: float = 1e-3,
    observer: Seen | None = None,
    **limits: float,
) -> Batcher:
    chosen = {"batch_rows": 100, "max_queue_rows": 10_000, "max_queue_bytes": 2**30, **limits}
    return Batcher(
        run,
        Limits(**{"max_wait_s": 1e9, **chosen}),  # type: ignore[arg-type]
        pace=Pace([1], [batch_s]),
        on_loop_s=on_loop_s or (1e9 if on_loop else 0.0),
        observer=observer or Seen(),
        thread=ThreadPoolExecutor(1, "model"),
    )


def rows(count: int, value: float = 1.0) -> np.ndarray:
    return np.full((count, 2), value, dtype=np.float32)


async def turn_until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.001)


class Gate:
    """A model that waits until it is let through; `inside` is set once it runs."""

    def __init__(self) -> None:
        self.inside, self.go = threading.Event(), threading.Event()
        self.batches: list[list[float]] = []

    def __call__(self, raw: np.ndarray) -> Answer:
        self.batches.append(raw[:, 0].tolist())
        self.inside.set()
        assert self.go.wait(PATIENCE_S)
        return double(raw)


class Clock:
    """A time that passes only where work is said to take some."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr("serving.batcher.time.perf_counter", lambda: self.now)

    def model(self, seconds: float) -> Callable[[np.ndarray], Answer]:
        def run(raw: np.ndarray) -> Answer:
            self.now += seconds
            return double(raw)

        return run
