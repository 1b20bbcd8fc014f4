"""SIGINT and SIGTERM: a run that is asked to stop says how to go on."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interrupted(BaseException):
    """A signal ended the run. No Exception: what catches those must not swallow it."""

    def __init__(self, received: signal.Signals) -> None:
        super().__init__(f"interrupted by {received.name}")
        self.received = received

    @property
    def exit_status(self) -> int:
        """128 and the signal's number, as shells have it."""
        return 128 + self.received


class Interrupts:
    """Signals raise `Interrupted`; within `deferred` the first one is only remembered."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self._deferred = False

    @contextlib.contextmanager
    def deferred(self) -> Iterator[None]:
        """Leaves it to the block to look at `received` and to stop where it can.

        What came after the block's last look raises at its end. After an error it stays so: the
        run ends anyhow, and a signal, such as torchrun's to the others when one process has died,
        must not hide why. Blocks may lie in one another; the outermost one raises.
        """
        outer, self._deferred = self._deferred, True
        yield
        self._deferred = outer
        if not outer:
            self.check()

    def check(self) -> None:
        """Raise `Interrupted` where a signal has come."""
        if self.received is not None:
            raise Interrupted(self.received)

    def handle(self, number: int, _frame: FrameType | None) -> None:
        """The signal handler. A second signal does not wait."""
        first, self.received = self.received is None, signal.Signals(number)
        if not (self._deferred and first):
            raise Interrupted(self.received)


@contextlib.contextmanager
def catch_interrupts() -> Iterator[Interrupts]:
    """Handle both signals while the block runs; outside the main thread nothing changes."""
    interrupts = Interrupts()
    if threading.current_thread() is not threading.main_thread():
        yield interrupts
        return
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    # What the shell has it ignore, such as SIGINT of a job in the background, stays ignored.
    caught = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    for number in caught:
        signal.signal(number, interrupts.handle)
    try:
        yield interrupts
    finally:
        for number in caught:
            signal.signal(number, before[number])
