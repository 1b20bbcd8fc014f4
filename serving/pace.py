"""How long the model takes for so many rows, measured when it is opened and while it serves."""

from __future__ import annotations

import math
import time
from bisect import bisect_left
from collections.abc import Callable

import numpy as np

# A size is measured until this is spent, and larger ones are not once a batch takes so long.
_BUDGET_S = 0.03
_LONGEST_BATCH_S = 0.1
# A larger batch must answer rows this much faster to be worth the wait of those in it.
_WORTH = 1.15
# Until so much of its memory has passed under load a slowdown is little believed.
_DOUBT = 0.03
# The weight of the last batch in the running factor.
_WEIGHT = 0.05


class Pace:
    """Seconds of a batch by its rows, between the sizes that were measured a straight line."""

    def __init__(self, rows: list[int], seconds: list[float]) -> None:
        """rows: the sizes, ascending, from 1; seconds: of one batch of each."""
        self._rows = rows
        self._seconds = seconds
        self._factor = 1.0

    @classmethod
    def measure(cls, run: Callable[[np.ndarray], object], rows: np.ndarray, largest: int) -> Pace:
        """Run batches of 1, 2, 4, ... of these rows, [N, ...], up to the largest size."""
        sizes: list[int] = []
        seconds: list[float] = []
        size = 1
        while True:
            batch = rows[np.arange(size) % len(rows)]
            run(batch)
            best, spent = float("inf"), 0.0
            while spent < _BUDGET_S:
                began = time.perf_counter()
                run(batch)
                best = min(best, time.perf_counter() - began)
                spent += best
            sizes.append(size)
            seconds.append(best)
            if size == largest or best >= _LONGEST_BATCH_S:
                return cls(sizes, seconds)
            size = min(size * 2, largest)

    def efficient_rows(self) -> int:
        """The smallest batch that answers rows about as fast as any."""
        return next(rows for rows, seconds in self._sizes() if seconds / rows <= self._good_s())

    def best_batch_rows(self, short_s: float, together: int = 1) -> int:
        """That one, or the largest that takes no longer than short_s; or, if rows take about as
        long in it, no longer than so many rows one by one.

        Where twice the rows take twice the time, as a large network on a CPU does, a larger
        batch only makes its first rows wait for its last.
        """
        good_s, together_s = self._good_s(), together * self._measured(1)
        larger = [
            rows
            for rows, seconds in self._sizes()
            if seconds <= max(short_s, min(together_s, good_s * rows))
        ]
        return max([self.efficient_rows(), *larger])

    def _good_s(self) -> float:
        return _WORTH * min(seconds / rows for rows, seconds in self._sizes())

    def _sizes(self) -> list[tuple[int, float]]:
        return list(zip(self._rows, self._seconds, strict=True))

    def seconds(self, rows: int, batch_rows: int) -> float:
        """Of so many rows, in batches of at most batch_rows, at the present pace."""
        return self._factor * self.alone_s(rows, batch_rows)

    @property
    def factor(self) -> float:
        """How many times as long batches take of late as was measured first."""
        return self._factor

    def alone_s(self, rows: int, batch_rows: int) -> float:
        """The same at the pace that was measured first, when nothing else was done."""
        if rows < batch_rows:
            return self._measured(rows)
        full, rest = divmod(rows, batch_rows)
        return full * self._measured(batch_rows) + self._measured(rest)

    def observe(self, rows: int, seconds: float, batch_rows: int) -> None:
        """A batch took so long: a machine that others use too is slower than at the start."""
        ratio = seconds * self._factor / self.seconds(rows, batch_rows)
        self._factor += _WEIGHT * (min(ratio, 10.0) - self._factor)

    def _measured(self, rows: int) -> float:
        if rows == 0:
            return 0.0
        if rows >= self._rows[-1]:
            return self._seconds[-1] * rows / self._rows[-1]
        upper = bisect_left(self._rows, rows)
        if self._rows[upper] == rows:
            return self._seconds[upper]
        low, high = self._rows[upper - 1], self._rows[upper]
        share = (rows - low) / (high - low)
        return self._seconds[upper - 1] + share * (self._seconds[upper] - self._seconds[upper - 1])


class Slowdown:
    """How many times as long answers take under load as the model alone, of late.

    What else a process does, what others do on the same cores: 1 where nothing is known.
    """

    def __init__(self, memory_s: float) -> None:
        """memory_s: what was longer ago counts for less than a third."""
        self._memory_s = memory_s
        self._doubt_s = self._taken_s = self._alone_s = _DOUBT * memory_s

    @property
    def factor(self) -> float:
        """Times."""
        return self._taken_s / self._alone_s

    def add(self, taken_s: float, alone_s: float) -> None:
        """What the model would have taken so long for alone took so long, until now."""
        kept = self._fade(taken_s)
        # Its own beginning is longer ago than its end.
        share = self._memory_s * (1 - kept) / taken_s if taken_s else 1.0
        self._taken_s += share * taken_s
        self._alone_s += share * alone_s

    def forget(self, seconds: float) -> None:
        """So much time has passed without load: what was before says less."""
        self._fade(seconds)

    def _fade(self, seconds: float) -> float:
        kept = math.exp(-seconds / self._memory_s)
        self._taken_s = self._doubt_s + kept * (self._taken_s - self._doubt_s)
        self._alone_s = self._doubt_s + kept * (self._alone_s - self._doubt_s)
        return kept
