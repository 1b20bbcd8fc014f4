"""Pieces of the input that are scored, written and recorded as one."""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import pyarrow as pa

from serving.scoring.chunks import Block

UNIT_ROWS = 65_536
UNIT_PICTURES = 256
# Of text, or of Arrow's memory.
UNIT_BYTES = 16 * 2**20
# Up to so many labels; with more of them, the answers to as many rows would be too large.
_LABELS = 64
# Into how many pieces the last units are cut, and what is too short for it.
_LAST_PIECES = (2, 4, 8, 16)
LEAST_ROWS = 8192
LEAST_PICTURES = 16


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
    bytes: of the source's size, as far as that is known. is_start: nothing before it has to be
    read; can_cut: nor is it much work to reach its middle.
    """

    source: int
    number: int
    first_row: int
    rows: int | None
    place: Any = None
    bytes: int = 0
    is_start: bool = True
    can_cut: bool = True
    most: int | None = None
    error: str | None = None

    @property
    def key(self) -> str:
        """What its part and its record are named by; in the order of the rows."""
        return f"{self.source:05d}-{self.number:05d}"


def end_together(units: Iterator[Unit]) -> Iterator[Unit]:
    """The last units in smaller pieces, so that no process has much left when the others end.

    What the pieces are depends, as all units do, on the input alone.
    """
    last: deque[Unit] = deque()
    shifts: dict[int, int] = {}
    for unit in units:
        last.append(unit)
        if len(last) > len(_LAST_PIECES):
            yield last.popleft()
    for unit, most in zip(last, _LAST_PIECES[-len(last) :], strict=True) if last else ():
        shift = shifts.get(unit.source, 0)
        pieces = list(_cut(replace(unit, number=unit.number + shift), most))
        shifts[unit.source] = shift + len(pieces) - 1
        yield from pieces


def _cut(unit: Unit, most: int) -> Iterator[Unit]:
    """At most so many pieces; one where its rows are few, not known, or lie in one place."""
    pictures = isinstance(unit.place, tuple) and len(unit.place) == unit.rows
    if unit.rows is None or not unit.can_cut or (unit.place is not None and not pictures):
        yield unit
        return
    pieces = max(1, min(most, unit.rows // (LEAST_PICTURES if pictures else LEAST_ROWS)))
    ends = [unit.rows * piece // pieces for piece in range(pieces + 1)]
    for piece, (start, stop) in enumerate(itertools.pairwise(ends)):
        yield replace(
            unit,
            number=unit.number + piece,
            first_row=unit.first_row + start,
            rows=stop - start,
            place=unit.place[start:stop] if pictures else None,
            bytes=unit.bytes * stop // unit.rows - unit.bytes * start // unit.rows,
            is_start=unit.is_start and piece == 0,
        )


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
