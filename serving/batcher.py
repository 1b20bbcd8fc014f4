"""A bounded queue in front of the model: what waits is answered together, and nothing else waits.

A request is checked before it gets here. A batch is what has come while the last one ran, up to
`batch_rows` rows; an idle model takes a request at once. Small requests are joined, large ones are
split, and the pieces of a large one take turns with what came after it. Everything but the model
itself runs on the event loop's thread.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from serving.overload import Overloaded
from serving.pace import Pace, Slowdown

_log = logging.getLogger("bentoml.parityline")

# How far back the loop's turns count, in longest waits. Where a machine is shared its pace changes
# within either: the slower one is believed.
_MEMORIES = (10.0, 2.0)
# What a turn takes beyond so many longest waits is a halt, and no load.
_HALT = 5.0
# Of the longest wait, the share for which the loop may be kept from reading.
_LONGEST_TURN = 0.5

Answer = tuple[np.ndarray, np.ndarray]
Deliver = Callable[[Answer | Exception], None]


class Observer(Protocol):
    """Who is told of each batch."""

    def batch(self, rows: int, seconds: float, waits: list[float]) -> None:
        """seconds: of the model; waits: of each request that was answered, in the queue."""


@dataclass(frozen=True, kw_only=True)
class Limits:
    """What may wait, and how it is joined.

    max_wait_s: a request that would wait longer than this, by what rows have taken of late, is
    refused. max_delay_s: how long a lone request waits for others when the model is free.
    """

    batch_rows: int
    max_queue_rows: int
    max_queue_bytes: int
    max_wait_s: float
    max_delay_s: float = 0.0


class Cancelled(Exception):
    """What a cancelled request is answered with."""


class Ticket:
    """A request in the queue."""

    __slots__ = (
        "_deliver", "_leave", "answer", "cancelled", "done", "raw", "started", "submitted", "taken",
    )  # fmt: skip

    def __init__(
        self,
        raw: np.ndarray,
        deliver: Deliver,
        leave: Callable[[Ticket, int], None],
        submitted: float,
    ) -> None:
        """leave: the queue, with so many rows of it."""
        self._deliver = deliver
        self._leave = leave
        self.raw = raw
        self.submitted = submitted
        self.started = 0.0
        # Rows that were given to batches.
        self.taken = 0
        # Of a request that was split: what is answered so far.
        self.answer: list[Answer] = []
        self.cancelled = False
        self.done = False

    def cancel(self) -> None:
        """Nobody waits for the answer any more: rows that have not run will not."""
        if not self.cancelled:
            self.cancelled = True
            self._leave(self, len(self.raw) - self.taken)

    def finish(self, outcome: Answer | Exception) -> None:
        """Deliver, once."""
        if not self.done:
            self.done = True
            try:
                self._deliver(outcome)
            # One answer that cannot be delivered must not keep the others from theirs.
            except Exception:  # noqa: BLE001
                _log.exception("an answer could not be delivered")


# (ticket, first row, row after the last) of each request in a batch.
_Pieces = list[tuple[Ticket, int, int]]


class Batcher:
    """Joins requests to batches, in the order they came."""

    def __init__(
        self,
        run: Callable[[np.ndarray], Answer],
        limits: Limits,
        *,
        pace: Pace,
        on_loop_s: float,
        observer: Observer,
        thread: Executor,
    ) -> None:
        """run: raw [N, ...] -> logits and probabilities [N, K], N <= batch_rows.

        on_loop_s: a batch that takes no longer runs on the event loop's thread, as handing it to
        another takes as long as a small network; 0: never. thread: for what takes longer; one.
        """
        self._run = run
        self._limits = limits
        self._pace = pace
        self._on_loop_s = on_loop_s
        self._observer = observer
        self._queue: deque[Ticket] = deque()
        self.queued_rows = 0
        self._queued_bytes = 0
        self._running_until = 0.0
        # When the loop last came back from the model, or there was something for it to do again;
        # and, until all has been read that has come meanwhile, when it went there.
        self._back_s = 0.0
        self._away_since = 0.0
        # Since then: what the model would have taken alone for what it ran, and whether any waited
        # for others. While some do the loop reads and refuses others too.
        self._ran_s = 0.0
        self._has_backlog = False
        self._slowdowns = [Slowdown(memory * limits.max_wait_s) for memory in _MEMORIES]
        self._scheduled = False
        self._delay: asyncio.TimerHandle | None = None
        self._closing = False
        self._idle = asyncio.Event()
        self._idle.set()
        self._thread = thread

    def overload(self, before: int = 0, before_s: float = 0.0) -> Overloaded | None:
        """Why a request that came now would be refused: it would wait too long; None: it would not.

        before: rows that will be queued before it; before_s: until it is queued itself.
        """
        if not self._queue and not before:
            return None
        now = time.perf_counter()
        wait_s = max(self._expected_s(now, before), before_s)
        if self._away_since:
            # It has waited to be read, too.
            wait_s += now - self._away_since
        if wait_s <= self._limits.max_wait_s:
            return None
        return Overloaded("wait", f"an answer would wait {wait_s:.2g} s", wait_s)

    def submit(self, raw: np.ndarray, deliver: Deliver) -> Ticket:
        """Queue these rows; `deliver` is called once, on the loop: their answer, or an error.

        raw: [N, ...], N >= 1. Raises Overloaded when there is no room; an empty queue has.
        """
        now = time.perf_counter()
        if self._closing:
            raise Overloaded("stopping", "the service is stopping", 1.0)
        if self._queue:
            if self.queued_rows + len(raw) > self._limits.max_queue_rows:
                message = f"{self.queued_rows} rows are waiting"
                raise Overloaded("rows", message, self._expected_s(now))
            if self._queued_bytes + raw.nbytes > self._limits.max_queue_bytes:
                message = f"{self._queued_bytes} bytes are waiting"
                raise Overloaded("bytes", message, self._expected_s(now))
        if self._idle.is_set():
            # What the loop has done since it last came back was not all reading.
            for slowdown in self._slowdowns:
                slowdown.forget(now - self._back_s)
            self._back_s = now
            self._has_backlog = False
        ticket = Ticket(raw, deliver, self._leave, now)
        self._queue.append(ticket)
        self.queued_rows += len(raw)
        self._queued_bytes += raw.nbytes
        self._idle.clear()
        self._schedule()
        return ticket

    async def close(self) -> None:
        """Accept nothing more; every accepted request is answered before this returns."""
        self._closing = True
        self._schedule()
        await self._idle.wait()
        self._thread.shutdown(wait=True)

    def _expected_s(self, now: float, more_rows: int = 0) -> float:
        """Until what runs and waits, and more_rows, is answered, as fast as rows were of late."""
        queued_s = self._pace.alone_s(self.queued_rows + more_rows, self._limits.batch_rows)
        factor = max(self._pace.factor, *(slowdown.factor for slowdown in self._slowdowns))
        return max(self._running_until - now, 0.0) + queued_s * factor

    def _schedule(self) -> None:
        """Let the next batch be made once what arrives in this turn of the loop is in."""
        full = self.queued_rows >= self._limits.batch_rows or self._closing
        if self._delay is not None and full:
            self._delay.cancel()
            self._end_delay()
            self._scheduled = False
        if self._scheduled:
            return
        self._scheduled = True
        loop = asyncio.get_running_loop()
        delay_s = self._limits.max_delay_s
        if delay_s and self._queue and not full:
            # While the last batch ran they have waited too.
            delay_s -= time.perf_counter() - self._queue[0].submitted
            self._delay = loop.call_later(max(delay_s, 0.0), self._start_batch)
        else:
            loop.call_soon(self._start_batch)

    def _end_delay(self) -> None:
        self._delay = None
        # To wait for others was no work.
        self._back_s = time.perf_counter()

    def _start_batch(self) -> None:
        if self._delay is not None:
            self._end_delay()
        began = time.perf_counter()
        # While there is more to read than there is time, as long as reading took: a fixed time
        # would be a small share, and what was accepted wait for many turns of the loop.
        reading_s = began - self._back_s
        allowed_s = max(self._on_loop_s, min(reading_s, self._limits.max_wait_s * _LONGEST_TURN))
        while pieces := self._next_pieces():
            rows = sum(stop - start for _, start, stop in pieces)
            expected_s = self._pace.seconds(rows, self._limits.batch_rows)
            self._running_until = time.perf_counter() + expected_s
            parts = [ticket.raw[start:stop] for ticket, start, stop in pieces]
            if expected_s > self._on_loop_s:
                loop = asyncio.get_running_loop()
                done = loop.run_in_executor(self._thread, self._timed, parts)
                done.add_done_callback(lambda future: self._finish(pieces, *future.result()))
                return
            self._hand_out(pieces, *self._timed(parts))
            # What was accepted comes before what more there is to read, for a while.
            if time.perf_counter() - began > allowed_s:
                break
        self._came_back()
        if self._back_s - began > self._on_loop_s:
            self._away_since = began
            asyncio.get_running_loop().call_soon(self._all_read)
        self._go_on()

    def _all_read(self) -> None:
        self._away_since = 0.0

    def _timed(self, parts: list[np.ndarray]) -> tuple[Answer | list[Answer | Exception], float]:
        """The answer to all together; or to each alone, so that only those that make the model
        fail see it fail."""
        began = time.perf_counter()
        try:
            joined = parts[0] if len(parts) == 1 else np.concatenate(parts)
            return self._run(joined), time.perf_counter() - began
        # Whatever the backend raises belongs to the requests, not to the loop.
        except Exception as error:  # noqa: BLE001
            alone: list[Answer | Exception] = [error]
            if len(parts) > 1:
                alone = [self._alone(part) for part in parts]
            return alone, time.perf_counter() - began

    def _alone(self, part: np.ndarray) -> Answer | Exception:
        try:
            return self._run(part)
        except Exception as error:  # noqa: BLE001
            return error

    def _finish(
        self, pieces: _Pieces, answer: Answer | list[Answer | Exception], seconds: float
    ) -> None:
        self._hand_out(pieces, answer, seconds)
        self._came_back()
        self._go_on()

    def _came_back(self) -> None:
        """From the model."""
        before, self._back_s = self._back_s, time.perf_counter()
        turn_s = self._back_s - before
        for slowdown in self._slowdowns:
            if self._has_backlog and self._ran_s:
                slowdown.add(min(turn_s, _HALT * self._limits.max_wait_s), self._ran_s)
            else:
                slowdown.forget(turn_s)
        self._ran_s = 0.0
        self._has_backlog = bool(self._queue)

    def _go_on(self) -> None:
        self._scheduled = False
        if self._queue:
            self._schedule()
        else:
            self._idle.set()

    def _hand_out(
        self, pieces: _Pieces, answer: Answer | list[Answer | Exception], seconds: float
    ) -> None:
        rows = sum(stop - start for _, start, stop in pieces)
        self._ran_s += self._pace.alone_s(rows, self._limits.batch_rows)
        self._has_backlog |= bool(self._queue)
        if isinstance(answer, list):
            for (ticket, _, _), outcome in zip(pieces, answer, strict=True):
                if isinstance(outcome, Exception):
                    # What is left of it in the queue will not run.
                    ticket.cancel()
                    ticket.finish(outcome)
                else:
                    self._hand_to(ticket, outcome)
        else:
            self._pace.observe(rows, seconds, self._limits.batch_rows)
            waits = []
            offset = 0
            for ticket, start, stop in pieces:
                part = slice(offset, offset + stop - start)
                if self._hand_to(ticket, (answer[0][part], answer[1][part])):
                    waits.append(ticket.started - ticket.submitted)
                offset += stop - start
            self._observer.batch(rows, seconds, waits)

    def _hand_to(self, ticket: Ticket, answer: Answer) -> bool:
        """Whether the request is answered with this piece."""
        if ticket.cancelled:
            ticket.finish(Cancelled())
            return False
        if len(answer[0]) != len(ticket.raw):
            ticket.answer.append(answer)
            if sum(len(logits) for logits, _ in ticket.answer) < len(ticket.raw):
                return False
            logits, probabilities = zip(*ticket.answer, strict=True)
            answer = np.concatenate(logits), np.concatenate(probabilities)
        ticket.finish(answer)
        return True

    def _next_pieces(self) -> _Pieces:
        """At most batch_rows rows from the head of the queue.

        What is left of a large request goes to the back: others need not wait for all of it.
        """
        pieces: _Pieces = []
        room = self._limits.batch_rows
        now = time.perf_counter()
        while self._queue and room:
            ticket = self._queue.popleft()
            left = len(ticket.raw) - ticket.taken
            if ticket.cancelled:
                ticket.finish(Cancelled())
                continue
            ticket.started = ticket.started or now
            rows = min(left, room)
            pieces.append((ticket, ticket.taken, ticket.taken + rows))
            ticket.taken += rows
            room -= rows
            self._leave(ticket, rows)
            if rows < left:
                self._queue.append(ticket)
        return pieces

    def _leave(self, ticket: Ticket, rows: int) -> None:
        self.queued_rows -= rows
        self._queued_bytes -= ticket.raw.nbytes // len(ticket.raw) * rows
