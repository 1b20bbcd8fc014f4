"""One thread for parsing and decoding, so that no request's pictures hold up the others' answers.

One at a time also bounds the memory: a decoded picture is many times its file.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.overload import Overloaded

Result = TypeVar("Result")

# The weight of the last one in the mean time of a decoding.
_WEIGHT = 0.1


class DecodingThread:
    """Runs functions in turn. waiting: how many have not ended."""

    def __init__(self, *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self.waiting = 0
        self._mean_s = 0.0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")

    @property
    def expected_s(self) -> float:
        """Until those that wait have ended, at the pace of those before."""
        return self.waiting * self._mean_s

    def check_room(self) -> None:
        """Raise Overloaded where too many wait."""
        if self.waiting >= self._max_waiting:
            message = f"{self.waiting} requests wait to be decoded"
            raise Overloaded("decoding", message, self.expected_s)

    def submit(
        self, function: Callable[[], Result], deliver: Callable[[Result | Exception], None]
    ) -> None:
        """Call function there, and then, on the loop, deliver with what it returns or raises."""
        loop = asyncio.get_running_loop()
        self.waiting += 1

        def timed() -> tuple[Result | Exception, float]:
            began = time.perf_counter()
            try:
                return function(), time.perf_counter() - began
            except Exception as error:  # noqa: BLE001  (it is the request's)
                return error, time.perf_counter() - began

        def done(future: asyncio.Future[tuple[Result | Exception, float]]) -> None:
            self.waiting -= 1
            result, seconds = future.result()
            self._mean_s += (_WEIGHT if self._mean_s else 1.0) * (seconds - self._mean_s)
            deliver(result)

        loop.run_in_executor(self._thread, timed).add_done_callback(done)

    def close(self) -> None:
        """Wait for what runs, and end."""
        self._thread.shutdown(wait=True)
