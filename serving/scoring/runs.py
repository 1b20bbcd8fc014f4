"""Parquet's RLE and bit-packing hybrid: levels, and indices into a dictionary.

https://parquet.apache.org/docs/file-format/data-pages/encodings/
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.scoring.thrift import BINARY, I32, I64, LIST, STRUCT, read_varint, write_struct

_MAGIC = b"PAR1"
# parquet.thrift: a column of int32 that are unsigned and of 8 bits, none of them null.
_INT32, _REQUIRED, _UINT_8 = 1, 0, 11
_DATA, _DICTIONARY, _PLAIN, _RLE, _RLE_DICTIONARY = 0, 2, 0, 3, 8


def _run(data: memoryview, at: int, bits: int, most: int) -> tuple[int, int | np.ndarray, int]:
    """How many numbers of so many bits there are, the one that all are or each, and the next run.

    most: as many as are wanted, or a few more, though the run may have more. Raises IndexError or
    ValueError for what is cut short.
    """
    run, at = read_varint(data, at)
    if run & 1:
        # Groups of eight, the lowest bit first; the last may be filled up.
        length = (run >> 1) * bits
        packed = np.frombuffer(data[at : at + min(length, (most + 7) // 8 * bits)], np.uint8)
        unpacked = np.unpackbits(packed, bitorder="little")
        numbers = unpacked[: len(unpacked) // bits * bits].reshape(-1, bits)
        if not len(numbers):
            raise ValueError
        values = numbers[:, 0] if bits == 1 else numbers @ (1 << np.arange(bits, dtype=np.int64))
        return len(values), values, at + length
    size = (bits + 7) // 8
    if len(data) < at + size or not run:
        raise ValueError
    return run >> 1, int.from_bytes(data[at : at + size], "little"), at + size


def numbers(data: memoryview, bits: int, count: int) -> np.ndarray:
    """So many numbers, int64. Raises IndexError or ValueError for what is cut short."""
    if not 1 <= bits <= 32:
        raise ValueError
    found = np.empty(count, np.int64)
    filled = at = 0
    while filled < count:
        length, values, at = _run(data, at, bits, count - filled)
        taken = min(length, count - filled)
        found[filled : filled + taken] = values if isinstance(values, int) else values[:taken]
        filled += taken
    return found


def are_all(data: memoryview, bits: int, count: int, number: int) -> bool:
    """Whether so many numbers are this one."""
    at = 0
    while count > 0:
        length, values, at = _run(data, at, bits, count)
        same = values == number if isinstance(values, int) else values[:count] == number
        if not np.all(same):
            return False
        count -= length
    return True


def are_lists(data: memoryview, first: int, count: int, length: int) -> bool:
    """Whether repetition levels of one bit are those of lists that are all of this length.

    first: of how many values come before them. Mostly the levels of all lists are the same bytes,
    as runs end where a list does: then one list is looked at, and the others are compared with it.
    """
    done = at = 0
    begun: int | None = None
    while done < count:
        size, levels, at = _run(data, at, 1, count - done)
        size = min(size, count - done)
        # A list begins with 0, all that follows in it is 1.
        starts = np.arange(-(first + done) % length, size, length)
        if isinstance(levels, int):
            if len(starts) != (0 if levels else size):
                return False
        else:
            expected = np.ones(size, np.uint8)
            expected[starts] = 0
            if not np.array_equal(levels[:size], expected):
                return False
        done += size
        if (first + done) % length == 0:
            if begun is not None:
                pattern, times = bytes(data[begun:at]), (count - done) // length
                end = at + len(pattern) * times
                if data[at:end] == pattern * times:
                    at, done = end, done + times * length
            begun = at
    return True


def looked_up(dictionary: np.ndarray, indices: memoryview, count: int) -> np.ndarray:
    """uint8 [count]: a dictionary's values. indices: as a page has them, first their bits.

    dictionary: int32, 0 to 255. By pyarrow, of a file of this one page, as runs may be short.
    Raises pyarrow's errors.
    """
    given = dictionary.astype("<i4").tobytes()
    pages = b"".join(
        [
            write_struct({
                1: (I32, _DICTIONARY), 2: (I32, len(given)), 3: (I32, len(given)),
                7: (STRUCT, {1: (I32, len(dictionary)), 2: (I32, _PLAIN)}),
            }),
            given,
        ]
    )  # fmt: skip
    header = write_struct({
        1: (I32, _DATA), 2: (I32, len(indices)), 3: (I32, len(indices)),
        5: (STRUCT, {1: (I32, count), 2: (I32, _RLE_DICTIONARY), 3: (I32, _RLE), 4: (I32, _RLE)}),
    })  # fmt: skip
    size = len(pages) + len(header) + len(indices)
    chunk = {
        1: (I32, _INT32), 2: (LIST, (I32, [_PLAIN, _RLE, _RLE_DICTIONARY])),
        3: (LIST, (BINARY, [b"values"])), 4: (I32, 0), 5: (I64, count), 6: (I64, size),
        7: (I64, size), 9: (I64, len(_MAGIC) + len(pages)), 11: (I64, len(_MAGIC)),
    }  # fmt: skip
    group = {
        1: (LIST, (STRUCT, [{2: (I64, len(_MAGIC)), 3: (STRUCT, chunk)}])),
        2: (I64, size), 3: (I64, count),
    }  # fmt: skip
    leaf = {1: (I32, _INT32), 3: (I32, _REQUIRED), 4: (BINARY, b"values"), 6: (I32, _UINT_8)}
    footer = write_struct({
        1: (I32, 2), 2: (LIST, (STRUCT, [{4: (BINARY, b"schema"), 5: (I32, 1)}, leaf])),
        3: (I64, count), 4: (LIST, (STRUCT, [group])),
    })  # fmt: skip
    file: list[Any] = [
        _MAGIC,
        pages,
        header,
        indices,
        footer,
        len(footer).to_bytes(4, "little"),
        _MAGIC,
    ]
    with pq.ParquetFile(pa.BufferReader(b"".join(file)), pre_buffer=False) as opened:
        column = opened.read(use_threads=False).column(0)
    return np.asarray(column.combine_chunks().to_numpy())
