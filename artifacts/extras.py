"""A package that only some of the commands need, and that may not be installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from artifacts.errors import ParitylineError


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Turns a missing package of an extra into one line that says how to install it."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise ParitylineError(
            f"{error.name} is not installed: pip install 'parityline[{name}]'"
        ) from error
