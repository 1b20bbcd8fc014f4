"""Where the records of CSV and JSON lines end, in a text that comes in windows.

Where a CSV record ends is what Arrow's parser says: a quote opens a cell only at the cell's
start, two quotes within quotes are one, what follows a closing quote up to the delimiter belongs
to the cell, and "\\n", "\\r\\n" and a lone "\\r" outside of quotes end a record. A whole window
is looked at in a few passes of numpy: no byte is stepped over in Python.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator

import numpy as np

# What is made of one stays in a core's cache.
_WINDOW_BYTES = 2**18
_LF, _CR, _QUOTE = b'\n\r"'
# JSON's own; a form feed is a bad row.
SPACE = b" \t\r\n"
_IS_SPACE = np.zeros(256, bool)
_IS_SPACE[list(SPACE)] = True

# What the byte before a quote says of the quote: it opens a cell; it does where that byte, itself
# a quote, closed one (two quotes within quotes are one); neither.
_OPENS, _REOPENS, _LITERAL = 1, 2, 0
_KINDS = np.full(256, _LITERAL, np.uint8)
_KINDS[[ord(","), _LF, _CR]] = _OPENS
_KINDS[_QUOTE] = _REOPENS
# Cells as the kinds of their quotes, outside of which quotes are literal: one that opens, then
# closing and reopening ones (a closing quote may be of any kind), at last one that closes.
_QUOTED_CELLS = re.compile(rb"(\x01(?:.[\x01\x02])*+(?:.|\Z))")


class CsvRecords:
    """Finds the ends of CSV records.

    blank_rows: whether a blank line is a row.
    begun: whether what was scanned after the last end is the beginning of a row.
    """

    def __init__(self, blank_rows: bool) -> None:
        self.begun = False
        self._blank_rows = blank_rows
        self._quoted = False  # The last byte lies within a quoted cell.
        self._opens = True  # A quote would open, or open again, a cell if it came next.

    def scan(self, window: bytes) -> tuple[np.ndarray, np.ndarray]:
        """The ends of the records that end in a window of `in_windows`, and which of them are rows.

        Ends are offsets in the window, int64 [N], past the line's end; which are rows, bool [N].
        """
        codes = np.frombuffer(window, np.uint8)
        breaks = codes == _LF
        if b"\r" in window:
            lone = codes == _CR
            lone[:-1] &= codes[1:] != _LF
            breaks |= lone
        ends = np.flatnonzero(breaks) + 1
        if self._quoted or b'"' in window:
            ends = self._outside_quotes(codes, ends)
        else:
            self._opens = bool(_KINDS[codes[-1]] == _OPENS)
        first = codes[_starts(ends)]
        is_row = np.ones(len(ends), bool) if self._blank_rows else (first != _LF) & (first != _CR)
        if self.begun:
            is_row[:1] = True
        # A blank line's first byte is its end: what has begun is a row.
        self.begun = not len(ends) or bool(ends[-1] < len(window))
        return ends, is_row

    def _outside_quotes(self, codes: np.ndarray, ends: np.ndarray) -> np.ndarray:
        quotes = np.flatnonzero(codes == _QUOTE)
        kinds = _KINDS.take(codes.take(quotes - 1))
        if len(quotes) and quotes[0] == 0:
            kinds[0] = _OPENS if self._opens else _LITERAL
        if self._quoted:
            quotes, kinds = np.insert(quotes, 0, -1), np.insert(kinds, 0, _OPENS)
        # Mostly every other quote opens or reopens a cell, and none is literal.
        if not kinds[::2].all():
            parts = _QUOTED_CELLS.split(kinds.tobytes())
            lengths = [len(part) for part in parts]
            quotes = quotes[np.repeat(np.arange(len(parts)) % 2 == 1, lengths)]
        self._quoted = len(quotes) % 2 == 1
        just_closed = len(quotes) > 0 and quotes[-1] == len(codes) - 1
        self._opens = bool(just_closed or _KINDS[codes[-1]] == _OPENS)
        outside: np.ndarray = ends[np.searchsorted(quotes, ends) % 2 == 0]
        return outside


class LineRecords:
    """The same for JSON lines."""

    def __init__(self) -> None:
        self.begun = False

    def scan(self, window: bytes) -> tuple[np.ndarray, np.ndarray]:
        codes = np.frombuffer(window, np.uint8)
        ends = np.flatnonzero(codes == _LF) + 1
        starts = _starts(ends)
        is_row = ~_IS_SPACE[codes[starts]]
        for line in np.flatnonzero(~is_row & (ends > starts + 1)):
            is_row[line] = bool(window[starts[line] : ends[line]].strip(SPACE))
        if self.begun:
            is_row[:1] = True
        tail = window[ends[-1] :] if len(ends) else window
        self.begun = (self.begun and not len(ends)) or bool(tail.strip(SPACE))
        return ends, is_row


def in_windows(blocks: Iterable[bytes]) -> Iterator[bytes]:
    """The same bytes, in parts that are not empty. None ends within a "\\r\\n"."""
    held = b""
    for block in blocks:
        for start in range(0, len(block), _WINDOW_BYTES):
            window = held + block[start : start + _WINDOW_BYTES]
            held = b"\r" if window.endswith(b"\r") else b""
            if window := window.removesuffix(held):
                yield window
    if held:
        yield held


def _starts(ends: np.ndarray) -> np.ndarray:
    return np.concatenate([[0], ends[:-1]]) if len(ends) else ends
