"""What a user can put right: one line with the thing, what was expected, what was found."""

from __future__ import annotations

from collections.abc import Iterable


class ParitylineError(Exception):
    """Anything whose message is written for the person who caused it."""


class DataError(ParitylineError, ValueError):
    """Data, a recipe or a request that cannot be used as it is."""


class BundleError(ParitylineError):
    """A bundle that is missing, incomplete, altered or not what it claims to be."""


class ParityError(BundleError):
    """Two formats, or two machines, that answer the same rows differently."""


class DeviceError(ParitylineError):
    """A device or a backend that was asked for and is not there."""


class Stopped(ParitylineError):
    """What was asked to stop, and did; exit_status as shells have it for the signal."""

    def __init__(self, message: str, exit_status: int) -> None:
        super().__init__(message)
        self.exit_status = exit_status


def nearest(name: str, names: Iterable[str]) -> str:
    """ "; did you mean 'NAME'?" where one of the names is much like it; nothing is chosen by it."""
    import difflib

    close = difflib.get_close_matches(name, list(names), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""
