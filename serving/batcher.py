"""A bounded queue in front of the model: whole requests wait, and run together.

A request is checked before it gets here. One thread runs the model; while it runs, what arrives
waits, and the next batch takes as many waiting requests as fit. Nothing waits when it is idle.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import AsyncIterator, Callable
from concurrent.futures import ThreadPoolExecutor

import numpy as np

Answer = tuple[np.ndarray, np.ndarray]


class Overloaded(Exception):
    """The queue is full: the request was not accepted."""


class Batcher:
    """Joins requests to batches of at most max_batch_rows, in the order they came."""

    def __init__(
        self,
        run: Callable[[np.ndarray], Answer],
        *,
        max_batch_rows: int,
        max_queue_rows: int,
    ) -> None:
        """run: raw [N, ...] -> logits and probabilities [N, K]; called from one other thread."""
        self._run = run
        self._max_batch_rows = max_batch_rows
        self._max_queue_rows = max_queue_rows
        self._waiting: deque[tuple[np.ndarray, asyncio.Future[Answer]]] = deque()
        self._queued_rows = 0
        self._wake = asyncio.Event()
        self._closing = False
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="model")

    @contextlib.asynccontextmanager
    async def running(self) -> AsyncIterator[Batcher]:
        """Answer requests inside this context; on leaving, every accepted one is answered."""
        task = asyncio.create_task(self._serve())
        try:
            yield self
        finally:
            self._closing = True
            self._wake.set()
            await task
            self._thread.shutdown(wait=True)

    async def submit(self, raw: np.ndarray) -> Answer:
        """The answer to these rows and no others. Raises Overloaded when the queue is full.

        A request larger than the queue is accepted when nothing waits.
        """
        if self._closing:
            raise Overloaded("the service is stopping")
        if self._queued_rows and self._queued_rows + len(raw) > self._max_queue_rows:
            raise Overloaded(f"{self._queued_rows} rows are waiting")
        future: asyncio.Future[Answer] = asyncio.get_running_loop().create_future()
        self._waiting.append((raw, future))
        self._queued_rows += len(raw)
        self._wake.set()
        return await future

    async def _serve(self) -> None:
        loop = asyncio.get_running_loop()
        while True:
            await self._wake.wait()
            batch = self._next_batch()
            if not batch:
                if self._closing:
                    return
                self._wake.clear()
                continue
            try:
                rows = [raw for raw, _ in batch]
                joined = rows[0] if len(rows) == 1 else np.concatenate(rows)
                answer = await loop.run_in_executor(self._thread, self._run, joined)
            # Whatever the backend raises belongs to the requests, not to the loop.
            except Exception as error:  # noqa: BLE001
                await self._one_by_one(batch, error)
                continue
            start = 0
            for raw, future in batch:
                stop = start + len(raw)
                if not future.done():
                    future.set_result((answer[0][start:stop], answer[1][start:stop]))
                start = stop

    async def _one_by_one(
        self, batch: list[tuple[np.ndarray, asyncio.Future[Answer]]], error: Exception
    ) -> None:
        """Only the request that makes the model fail may see it fail."""
        loop = asyncio.get_running_loop()
        for raw, future in batch:
            outcome: Answer | Exception = error
            if len(batch) > 1:
                try:
                    outcome = await loop.run_in_executor(self._thread, self._run, raw)
                except Exception as own_error:  # noqa: BLE001
                    outcome = own_error
            if future.done():
                continue
            if isinstance(outcome, Exception):
                future.set_exception(outcome)
            else:
                future.set_result(outcome)

    def _next_batch(self) -> list[tuple[np.ndarray, asyncio.Future[Answer]]]:
        """The requests at the head of the queue that fit together; a large one goes alone.

        Those whose callers have gone are dropped.
        """
        batch: list[tuple[np.ndarray, asyncio.Future[Answer]]] = []
        rows = 0
        while self._waiting:
            raw, future = self._waiting[0]
            if batch and rows + len(raw) > self._max_batch_rows:
                break
            self._waiting.popleft()
            self._queued_rows -= len(raw)
            if not future.done():
                batch.append((raw, future))
                rows += len(raw)
        return batch
