"""Pieces of the input that are scored, written and recorded as one."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import pyarrow as pa

from serving.scoring.chunks import Block

UNIT_ROWS = 65_536
UNIT_PICTURES = 256
# Of text, or of Arrow's memory.
UNIT_BYTES = 16 * 2**20
# Up to so many labels; with more of them, the answers to as many rows would be too large.
_LABELS = 64


@dataclass(frozen=True)
class UnitSize:
    """What a unit holds at most, about: rows, of encoded pictures fewer; bytes of what is read."""

    rows: int
    pictures: int
    bytes: int

    @classmethod
    def of(cls, labels: int) -> UnitSize:
        """For a model of so many labels."""
        share = min(1.0, _LABELS / labels)
        rows, pictures, size = (
            max(1, int(most * share)) for most in (UNIT_ROWS, UNIT_PICTURES, UNIT_BYTES)
        )
        return cls(rows, pictures, size)


@dataclass(frozen=True)
class Unit:
    """Rows of one source. They depend on the input alone, not on who scores them, or how many do.

    number: in its source, from 0. first_row: in its source. rows: None for all rows of a source
    that can only be read from its start, whose units show on the way. place: for its reader.
    bytes: of the source's size, as far as that is known.
    """

    source: int
    number: int
    first_row: int
    rows: int | None
    place: Any = None
    bytes: int = 0
    is_start: bool = True
    most: int | None = None
    error: str | None = None

    @property
    def key(self) -> str:
        """What its part and its record are named by; in the order of the rows."""
        return f"{self.source:05d}-{self.number:05d}"


class Reader(Protocol):
    """A source's rows. Errors are DataError, OSError or pyarrow's."""

    # The columns that the source has.
    schema: pa.Schema

    def units(self) -> Iterator[Unit]:
        """All of them in order, known as they are found."""

    def blocks(self, unit: Unit, columns: Sequence[str]) -> Iterator[Block]:
        """A unit's rows in order, with these columns; fast where one unit follows another."""

    def stream(self, columns: Sequence[str]) -> Iterator[tuple[Unit, Iterator[Block]]]:
        """The units of a source of unknown rows; blocks that are not asked for cost less."""

    def close(self) -> None:
        """Nothing is read after this."""
