"""Fixed-size binary values of a local Parquet file, used where they lie.

A page of plain values that is not compressed is a view of the file; pages before those that are
wanted are passed by their headers, not decoded. pyarrow copies each value three times, and decodes
a row group from its start, which for small models on pixels takes as long as the model.
What is unlike that, nulls or a damaged page for instance, is left to pyarrow: `Unlike` is raised.

The format: https://parquet.apache.org/docs/file-format/, and its parquet.thrift; page headers are
structs in Thrift's compact protocol.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from serving.scoring.mapped import MappedFile

# parquet.thrift: PageType, Encoding, and the fields of PageHeader and what is in it.
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "GZIP": "gzip", "ZSTD": "zstd"}
# Most headers fit in the first; statistics of long values make them longer.
_HEADER_BYTES = (2**12, 2**16)
_DEEPEST = 4
# Of a page, and how much longer its bytes may be than its values: more is no writer's.
_MOST_ROWS = 2**22
_LEVELS_BYTES = 2**16
_DAMAGED = (ValueError, LookupError, OverflowError, OSError, MemoryError, pa.ArrowException)


class Unlike(Exception):
    """What is here is for pyarrow to read, or to refuse."""


@dataclass(frozen=True)
class _Page:
    """first_row: in the file. at, size, full_size: its bytes in the file, and without compression.
    levels: bytes of version 2's levels, which are not compressed; None in version 1."""

    first_row: int
    rows: int
    encoding: int
    at: int
    size: int
    full_size: int
    is_compressed: bool
    levels: int | None


class Pages:
    """A column's values as Arrow arrays."""

    def __init__(self, path: str, metadata: pq.FileMetaData, name: str, width: int) -> None:
        """metadata: of the file; name: of a column at the top level; width: bytes of a value.

        Raises Unlike where its pages cannot be such ones, or OSError.
        """
        self.name = name
        self._metadata, self._width = metadata, width
        schema = metadata.schema
        names = [schema.column(index).path for index in range(len(schema.names))]
        if names.count(name) != 1:
            raise Unlike
        self._column = names.index(name)
        described = schema.column(self._column)
        if (
            described.physical_type != "FIXED_LEN_BYTE_ARRAY"
            or described.length != width
            or described.max_repetition_level != 0
            or described.max_definition_level > 1
        ):
            raise Unlike
        self._may_be_null = described.max_definition_level == 1
        rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        self._starts = np.cumsum([0, *rows])
        self._file = MappedFile(path)
        self._group = -1
        self._pages: Iterator[_Page] = iter(())
        # Those of the row group that were found on the way, and the values of the last one.
        self._found: list[_Page] = []
        self._dictionary: np.ndarray | None = None
        self._held: tuple[int, np.ndarray] | None = None

    def read(self, first: int, stop: int) -> pa.ChunkedArray:
        """Rows from `first` up to `stop`, an array of each page. Raises Unlike."""
        kind = pa.binary(self._width)
        arrays = []
        while first < stop:
            try:
                page = self._page(first)
                values = self._values(page)
            except _DAMAGED as error:
                raise Unlike from error
            wanted = values[first - page.first_row : stop - page.first_row]
            buffers = [None, pa.py_buffer(wanted)]
            arrays.append(pa.FixedSizeBinaryArray.from_buffers(kind, len(wanted), buffers))
            first += len(wanted)
        return pa.chunked_array(arrays, kind)

    def close(self) -> None:
        """Let the file go."""
        self._held = None
        self._file.close()

    def _page(self, row: int) -> _Page:
        group = int(np.searchsorted(self._starts, row, side="right")) - 1
        if group != self._group:
            self._group, self._found, self._dictionary, self._held = group, [], None, None
            self._pages = self._walk(group)
        if self._found and row < self._found[-1].first_row + self._found[-1].rows:
            after = bisect_right(self._found, row, key=lambda page: page.first_row)
            return self._found[after - 1]
        for page in self._pages:
            self._found.append(page)
            if row < page.first_row + page.rows:
                return page
        raise Unlike

    def _walk(self, group: int) -> Iterator[_Page]:
        """The pages of a row group, by their headers."""
        chunk = self._metadata.row_group(group).column(self._column)
        if chunk.compression not in _CODECS or chunk.file_path:
            raise Unlike
        at = chunk.data_page_offset
        if chunk.has_dictionary_page:
            at = min(at, chunk.dictionary_page_offset)
        row, stop = (int(end) for end in self._starts[group : group + 2])
        while row < stop:
            header, length = self._header(at)
            at += length
            full_size, size = header[2], header[3]
            if size < 0:
                raise ValueError
            if header[1] == _DICTIONARY:
                values = header[7][1]
                self._check_size(values, full_size)
                self._dictionary = self._plain(self._bytes(at, size, full_size, group), values)
            elif header[1] in (_DATA, _DATA_V2):
                second = header[1] == _DATA_V2
                fields = header[8] if second else header[5]
                rows = fields[1]
                if row + rows > stop or (second and (fields[2] or fields[6])):
                    raise Unlike
                self._check_size(rows, full_size)
                if not second and self._may_be_null and fields[3] != _RLE:
                    raise Unlike
                is_compressed = fields.get(7, True) if second else True
                yield _Page(
                    row, rows, fields[4] if second else fields[2], at, size, full_size,
                    is_compressed, fields[5] if second else None,
                )  # fmt: skip
                row += rows
            at += size

    def _check_size(self, rows: int, full_size: int) -> None:
        """Raise Unlike for what would take more memory than its values."""
        most = rows * (self._width + 1) + _LEVELS_BYTES
        if not 0 <= rows <= _MOST_ROWS or not 0 <= full_size <= most:
            raise Unlike

    def _header(self, at: int) -> tuple[dict[int, Any], int]:
        """A page's header, and its length."""
        for most in _HEADER_BYTES:
            self._file.seek(at)
            data = bytes(self._file.read(most))
            try:
                return _struct(data, 0, _DEEPEST)
            except IndexError:
                if len(data) < most:
                    break
            except KeyError:
                break
        raise Unlike

    def _bytes(self, at: int, size: int, full_size: int, group: int) -> memoryview:
        """A page's bytes, decompressed. Raises ValueError where they are not all there."""
        self._file.seek(at)
        data = memoryview(self._file.read(size))
        codec = _CODECS[self._metadata.row_group(group).column(self._column).compression]
        if codec is not None:
            data = memoryview(pa.decompress(data, full_size, codec)).cast("B")
        if len(data) != full_size:
            raise ValueError
        return data

    def _values(self, page: _Page) -> np.ndarray:
        """uint8 [rows, width]."""
        if self._held is not None and self._held[0] == page.first_row:
            return self._held[1]
        if page.levels is None:
            data = self._bytes(page.at, page.size, page.full_size, self._group)
            if self._may_be_null:
                length = 4 + int.from_bytes(data[:4], "little")
                self._check_levels(data[4:length], page.rows)
                data = data[length:]
        else:
            # Version 2: without nulls, whatever its levels are.
            levels = page.levels
            if page.is_compressed:
                data = self._bytes(
                    page.at + levels, page.size - levels, page.full_size - levels, self._group
                )
            else:
                self._file.seek(page.at + levels)
                data = memoryview(self._file.read(page.size - levels))
        if page.encoding == _PLAIN:
            values = self._plain(data, page.rows)
        elif page.encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY) and self._dictionary is not None:
            indices = _hybrid(data[1:], data[0], page.rows)
            if len(indices) and indices.max() >= len(self._dictionary):
                raise ValueError
            values = self._dictionary[indices]
        else:
            raise Unlike
        self._held = (page.first_row, values)
        return values

    def _plain(self, data: memoryview, rows: int) -> np.ndarray:
        if len(data) != rows * self._width:
            raise ValueError
        return np.frombuffer(data, np.uint8).reshape(rows, self._width)

    @staticmethod
    def _check_levels(data: memoryview, rows: int) -> None:
        """Raise Unlike where a value is null."""
        if not _hybrid(data, 1, rows).all():
            raise Unlike


def _hybrid(data: memoryview, width: int, count: int) -> np.ndarray:
    """So many numbers of `width` bits, int64, of the RLE and bit-packing hybrid encoding."""
    if not 1 <= width <= 32:
        raise ValueError
    found = np.empty(count, np.int64)
    filled = at = 0
    size = (width + 7) // 8
    while filled < count:
        run, at = _varint(data, at)
        if run & 1:
            # Groups of eight, the lowest bit first; the last may be filled up.
            length = (run >> 1) * width
            packed = np.frombuffer(data[at : at + length], np.uint8)
            at += length
            bits = np.unpackbits(packed, bitorder="little")
            numbers = bits[: len(bits) // width * width].reshape(-1, width)
            values = numbers @ (1 << np.arange(width, dtype=np.int64))
        else:
            if len(data) < at + size:
                raise ValueError
            value = int.from_bytes(data[at : at + size], "little")
            at += size
            values = np.broadcast_to(np.int64(value), min(run >> 1, count - filled))
        if not len(values):
            raise ValueError
        taken = values[: count - filled]
        found[filled : filled + len(taken)] = taken
        filled += len(taken)
    return found


def _varint(data: bytes | memoryview, at: int) -> tuple[int, int]:
    """An unsigned number, and where what follows begins. Raises IndexError at the end of data."""
    number = shift = 0
    while True:
        byte = data[at]
        at += 1
        number |= (byte & 0x7F) << shift
        if byte < 0x80:
            return number, at
        shift += 7
        if shift > 63:
            raise ValueError


def _zigzag(data: bytes, at: int) -> tuple[int, int]:
    number, at = _varint(data, at)
    return (number >> 1) ^ -(number & 1), at


def _struct(data: bytes, at: int, depth: int) -> tuple[dict[int, Any], int]:
    """Numbers, truths and structs of a struct by field; what else there is, is passed."""
    found: dict[int, Any] = {}
    field = 0
    while start := data[at]:
        at += 1
        if start >> 4:
            field += start >> 4
        else:
            field, at = _zigzag(data, at)
        found[field], at = _value(data, at, start & 0x0F, depth)
    return found, at + 1


def _value(data: bytes, at: int, kind: int, depth: int) -> tuple[Any, int]:
    if kind in (1, 2):
        return kind == 1, at
    if kind in (4, 5, 6):
        return _zigzag(data, at)
    if kind == 8:
        length, at = _varint(data, at)
        if at + length > len(data):
            raise IndexError
        return None, at + length
    if kind == 12 and depth:
        return _struct(data, at, depth - 1)
    # No header has such a one.
    raise KeyError(kind)
