"""One thread for parsing and decoding, so that no request's pictures hold up the others' answers.

One at a time also bounds the memory: a decoded picture is many times its file.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from serving.batcher import Overloaded

Result = TypeVar("Result")


class DecodingThread:
    """Runs functions in turn; at most max_waiting of them wait."""

    def __init__(self, *, max_waiting: int) -> None:
        self._max_waiting = max_waiting
        self._waiting = 0
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix="decode")

    async def run(self, function: Callable[..., Result], *arguments: object) -> Result:
        """The function's result. Raises Overloaded where too many wait, and what it raises."""
        if self._waiting >= self._max_waiting:
            raise Overloaded(f"{self._waiting} requests wait to be decoded")
        self._waiting += 1
        try:
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(self._thread, function, *arguments)
        finally:
            self._waiting -= 1

    def close(self) -> None:
        """Wait for what runs, and end."""
        self._thread.shutdown(wait=True)
