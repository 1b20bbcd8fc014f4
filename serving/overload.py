"""What a service says instead of suffering."""

from __future__ import annotations

import math


class Overloaded(Exception):
    """A request that was not accepted, as what waits already is enough.

    reason: one word, for /metrics.
    """

    def __init__(self, reason: str, message: str, expected_s: float) -> None:
        """expected_s: after how long there should be room."""
        super().__init__(message)
        self.reason = reason
        self.retry_after_s = max(1, math.ceil(expected_s))
