"""CSV and JSON lines in pieces that end where records end, each with the numbers of its rows.

A large text can so be read by several processes, and a row keeps the number that it has in the
whole. Where a record ends is said in `serving.scoring.records`. Pieces depend on the text and on
`target_bytes` alone, never on how the text was read.

    names, offset, rest = read_header(blocks)
    for piece in cut_csv(rest, 2**26, columns=len(names), offset=offset):
        ...
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv

from artifacts.errors import DataError
from serving.scoring.records import SPACE, CsvRecords, LineRecords, in_windows

# Arrow counts the bytes of a block in 31 bits, and a piece can be a target and a record long.
RECORD_BYTES = 2**30
_BOM = b"\xef\xbb\xbf"
_TEXT = pa.string()


@dataclass(frozen=True)
class Piece:
    """A stretch of a text that holds whole records.

    offset: bytes before it in the (decompressed) text; length: bytes; first_row: the number of
    its first row, from 0, the header apart; rows: how many it holds, ragged ones too.
    """

    offset: int
    length: int
    first_row: int
    rows: int


def read_header(blocks: Iterable[bytes]) -> tuple[list[str], int, Iterator[bytes]]:
    """A CSV text's first record that is not blank: the columns' names.

    Returns the names, the offset of the text's next byte, and the text from there on, in blocks.
    Raises DataError for a text without such a record, or where Arrow cannot read it.
    """
    offset, rest = skip_bom(blocks)
    windows = in_windows(rest)
    records = CsvRecords(blank_rows=False)
    header = bytearray(_BOM[:offset])
    for window in windows:
        ends, is_row = records.scan(window)
        end = int(ends[is_row.argmax()]) if is_row.any() else len(window)
        header += window[:end]
        if len(header) > RECORD_BYTES:
            raise DataError(f"header: {_too_long(0)}")
        if is_row.any():
            windows = chain([window[end:]], windows)
            break
    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=max(1, len(header)))
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    source = pa.BufferReader(bytes(header))
    try:
        # Not open_csv: a reader that is left reads on, and where the process ends meanwhile, as
        # after an error in the names, Arrow's thread aborts it.
        names = pyarrow.csv.read_csv(source, read, parse).column_names
    except UnicodeDecodeError as error:
        raise DataError(
            f"line 1: expected UTF-8 text, found the byte 0x{error.object[error.start]:02x}; save "
            "the file as UTF-8"
        ) from error
    except pa.ArrowException as error:
        raise DataError(f"cannot be read: {error}") from error
    return names, len(header), windows


def skip_bom(blocks: Iterable[bytes]) -> tuple[int, Iterator[bytes]]:
    """The length of the mark of UTF-8 that a text begins with, 0 or 3, and what follows it."""
    source = iter(blocks)
    start = b""
    while len(start) < len(_BOM) and (block := next(source, None)) is not None:
        start += block
    length = len(_BOM) if start.startswith(_BOM) else 0
    return length, chain([start[length:]], source)


def cut_csv(
    blocks: Iterable[bytes], target_bytes: int, *, columns: int, offset: int
) -> Iterator[Piece]:
    """Pieces of the CSV text after its header, in order, without a gap.

    A piece ends with the first record that brings it to target_bytes (at most half of
    RECORD_BYTES), the last one with the text. Blank lines are no rows, but in a file of one
    column they are missing cells. A quote that nothing closes makes the rest of the text one
    record, as in Arrow. Memory: a block, and a constant. Raises DataError for a record of more
    than RECORD_BYTES.

    blocks, offset: as `read_header` gave them.
    """
    return _cut(blocks, CsvRecords(blank_rows=columns == 1), target_bytes, offset)


def cut_lines(blocks: Iterable[bytes], target_bytes: int, *, offset: int) -> Iterator[Piece]:
    """The same of JSON lines: each "\\n" ends a record, lines of whitespace alone are no rows.

    blocks, offset: as `skip_bom` gave them.
    """
    return _cut(blocks, LineRecords(), target_bytes, offset)


def with_bytes(
    blocks: Iterable[bytes], cut: Callable[[Iterable[bytes]], Iterator[Piece]]
) -> Iterator[tuple[Piece, bytes]]:
    """The pieces that `cut` makes of a stream, each with its bytes, which are read only once.

    Memory: the bytes of a piece, and a block.
    """
    held: deque[memoryview] = deque()

    def seen() -> Iterator[bytes]:
        for block in blocks:
            held.append(memoryview(block))
            yield block

    for piece in cut(seen()):
        parts: list[memoryview] = []
        missing = piece.length
        while missing:
            block = held.popleft()
            parts.append(block[:missing])
            if missing < len(block):
                held.appendleft(block[missing:])
            missing -= len(parts[-1])
        yield piece, b"".join(parts)


def parse_csv_piece(
    data: bytes,
    names: list[str],
    piece: Piece,
    *,
    include_columns: Sequence[str] | None = None,
    kind: pa.DataType = _TEXT,
) -> tuple[pa.Table, np.ndarray, list[tuple[int, str]]]:
    """The rows of one piece, its bytes given.

    names: all columns of the text; include_columns: the wanted ones, at least one, by default all.
    Returns string columns of N rows without nulls, the rows' numbers, int64 [N], and number and
    reason of each ragged row. Raises DataError where a wanted cell is not UTF-8, and where the
    piece does not hold as many rows as it says: their numbers would be wrong.
    """
    assert include_columns is None or len(include_columns), "to Arrow, none means all"
    ragged: dict[int, str] = {}

    def skip(row: Any) -> str:
        # Its number counts from 1.
        reason = f"expected {row.expected_columns} cells, found {row.actual_columns}"
        ragged[piece.first_row + row.number - 1] = reason
        return "skip"

    # Arrow takes a mark of UTF-8 away, which within a text is a part of a cell.
    text = _BOM + data if data.startswith(_BOM) else data
    # The numbers of ragged rows are known only without threads.
    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=len(text), column_names=names)
    parse = pyarrow.csv.ParseOptions(
        newlines_in_values=True, ignore_empty_lines=len(names) > 1, invalid_row_handler=skip
    )
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, kind),
        strings_can_be_null=False,
        include_columns=include_columns,
    )
    try:
        table = pyarrow.csv.read_csv(pa.BufferReader(text), read, parse, convert)
    except pa.ArrowException as error:
        raise DataError(f"{_place(piece)}: {_not_utf8(data, piece) or error}") from error
    _check_rows(len(table) + len(ragged), piece)
    numbers = np.arange(piece.first_row, piece.first_row + piece.rows)
    skipped = np.array(list(ragged), np.int64) - piece.first_row
    return table, np.delete(numbers, skipped), list(ragged.items())


def split_lines(data: bytes, piece: Piece) -> list[bytes]:
    """The lines of a piece of JSON lines that are rows, one for each, from piece.first_row on.

    Raises DataError where there are not as many as the piece says.
    """
    lines = [line for line in data.split(b"\n") if line.strip(SPACE)]
    _check_rows(len(lines), piece)
    return lines


def _cut(
    blocks: Iterable[bytes],
    records: CsvRecords | LineRecords,
    target_bytes: int,
    offset: int,
) -> Iterator[Piece]:
    assert 1 <= target_bytes <= RECORD_BYTES // 2
    start = record = position = offset
    first_row = rows = 0
    for window in in_windows(blocks):
        ends, is_row = records.scan(window)
        reached = position + (int(ends[0]) if len(ends) else len(window))
        if reached - record > RECORD_BYTES:
            raise DataError(f"row {first_row + rows}: {_too_long(record)}")
        done = 0
        while (last := int(np.searchsorted(ends, start + target_bytes - position))) < len(ends):
            rows += int(np.count_nonzero(is_row[done : last + 1]))
            end = position + int(ends[last])
            yield Piece(start, end - start, first_row, rows)
            start, first_row, rows, done = end, first_row + rows, 0, last + 1
        rows += int(np.count_nonzero(is_row[done:]))
        if len(ends):
            record = position + int(ends[-1])
        position += len(window)
    if position > start:
        yield Piece(start, position - start, first_row, rows + records.begun)


def _check_rows(found: int, piece: Piece) -> None:
    if found != piece.rows:
        raise DataError(f"{_place(piece)}: expected {piece.rows} rows, as counted, found {found}")


def _place(piece: Piece) -> str:
    return f"rows {piece.first_row} to {piece.first_row + piece.rows - 1}"


def _not_utf8(data: bytes, piece: Piece) -> str:
    try:
        data.decode()
    except UnicodeDecodeError as error:
        found = f"0x{data[error.start]:02x} at byte {piece.offset + error.start}"
        return f"expected UTF-8, found {found}"
    return ""


def _too_long(offset: int) -> str:
    return (
        f"expected a record of at most {RECORD_BYTES} bytes, found a longer one that begins at "
        f"byte {offset}: is there a quote that nothing closes?"
    )
