"""Fixed-size binary values of a local Parquet file, used where they lie.

A page of plain values that is not compressed is a view of the file; pages before those that are
wanted are passed by their headers, not decoded. pyarrow copies each value three times, and decodes
a row group from its start, which for small models on pixels takes as long as the model.
What is unlike that, nulls or a damaged page for instance, is left to pyarrow: `Unlike` is raised.

The format: https://parquet.apache.org/docs/file-format/, and its parquet.thrift.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.errors import DataError
from serving.scoring.mapped import MappedFile
from serving.scoring.thrift import read_struct, read_varint

# parquet.thrift: PageType, Encoding, and the fields of PageHeader and what is in it.
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
# Gzip takes longer than pyarrow's copies do.
_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "ZSTD": "zstd"}
# Most headers fit in the first; statistics of long values make them longer.
_HEADER_BYTES = (2**12, 2**16)
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
        self._held: tuple[int, np.ndarray, np.ndarray | None] | None = None

    def read(self, first: int, stop: int) -> pa.ChunkedArray:
        """Rows from `first` up to `stop`, an array of each page.

        Raises Unlike, or DataError where rows are lost, of which pyarrow says nothing.
        """
        kind = pa.binary(self._width)
        arrays = []
        while first < stop:
            try:
                page = self._page(first)
                values, indices = self._values(page)
            except DataError:
                raise
            except _DAMAGED as error:
                raise Unlike from error
            rows = slice(first - page.first_row, stop - page.first_row)
            # A dictionary's few bytes may stand for any number of rows.
            wanted = values[rows] if indices is None else values[indices[rows]]
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
        end = at + chunk.total_compressed_size
        row, stop = map(int, self._starts[group : group + 2])
        while row < stop:
            if at >= end:
                # What follows is another column's, or another row group's.
                raise self._lost(group, f"{stop - row} fewer")
            header, length = self._header(at)
            at += length
            kind, full_size, size = (_number(header, field) for field in (1, 2, 3))
            if size < 0:
                raise ValueError
            if kind == _DICTIONARY:
                values = _number(header[7], 1)
                self._check_size(values, full_size)
                self._dictionary = self._plain(self._bytes(at, size, full_size, group), values)
            elif kind in (_DATA, _DATA_V2):
                page = self._described(header[8 if kind == _DATA_V2 else 5], row, at, header)
                if page.rows > stop - row:
                    raise self._lost(group, f"at least {page.rows - stop + row} more")
                yield page
                row += page.rows
            else:
                # pyarrow passes it, and gives its rows the values of those after them.
                raise self._lost(group, f"a page of an unknown kind, {kind}")
            at += size

    def _described(self, fields: Any, row: int, at: int, header: dict[int, Any]) -> _Page:
        """A page of data by its own header, `fields`, and the one around that."""
        second = _number(header, 1) == _DATA_V2
        rows, full_size = _number(fields, 1), _number(header, 2)
        self._check_size(rows, full_size)
        # Repetition levels; levels that are packed as they were before Parquet 2.
        if not rows or (fields[6] if second else self._may_be_null and fields[3] != _RLE):
            raise Unlike
        return _Page(
            row, rows, _number(fields, 4 if second else 2), at, _number(header, 3), full_size,
            bool(fields.get(7, True)) if second else True, _number(fields, 5) if second else None,
        )  # fmt: skip

    def _lost(self, group: int, found: str) -> DataError:
        rows = self._metadata.row_group(group).num_rows
        return DataError(
            f"column {self.name!r}, row group {group}: damaged: expected {rows} values in its "
            f"pages, found {found}"
        )

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
                return read_struct(data)
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
            # What is missing at the end is no error of pyarrow's with this codec.
            if codec == "snappy" and read_varint(data, 0)[0] != full_size:
                raise ValueError
            data = memoryview(pa.decompress(data, full_size, codec)).cast("B")
        if len(data) != full_size:
            raise ValueError
        return data

    def _values(self, page: _Page) -> tuple[np.ndarray, np.ndarray | None]:
        """uint8 [rows, width]; of a page that has a dictionary, that, and int64 [rows] into it."""
        if self._held is not None and self._held[0] == page.first_row:
            return self._held[1:]
        levels, data = self._parts(page)
        if self._may_be_null and not _hybrid(levels, 1, page.rows).all():
            raise Unlike
        indices = None
        if page.encoding == _PLAIN:
            values = self._plain(data, page.rows)
        elif page.encoding in (_PLAIN_DICTIONARY, _RLE_DICTIONARY) and self._dictionary is not None:
            values, indices = self._dictionary, _hybrid(data[1:], data[0], page.rows)
            if indices.max() >= len(values):
                raise ValueError
        else:
            raise Unlike
        self._held = (page.first_row, values, indices)
        return values, indices

    def _parts(self, page: _Page) -> tuple[memoryview, memoryview]:
        """A page's definition levels, and its values."""
        if page.levels is None:
            data = self._bytes(page.at, page.size, page.full_size, self._group)
            length = 4 + int.from_bytes(data[:4], "little") if self._may_be_null else 0
            return data[4:length], data[length:]
        at, size = page.at + page.levels, page.size - page.levels
        if page.levels < 0 or size < 0:
            raise ValueError
        self._file.seek(page.at)
        levels = memoryview(self._file.read(page.levels))
        if page.is_compressed:
            return levels, self._bytes(at, size, page.full_size - page.levels, self._group)
        self._file.seek(at)
        return levels, memoryview(self._file.read(size))

    def _plain(self, data: memoryview, rows: int) -> np.ndarray:
        if len(data) != rows * self._width:
            raise ValueError
        return np.frombuffer(data, np.uint8).reshape(rows, self._width)


def _number(fields: Any, field: int) -> int:
    """What is none is damage."""
    found = fields[field] if isinstance(fields, dict) else None
    if type(found) is not int:
        raise ValueError
    return found


def _hybrid(data: memoryview, width: int, count: int) -> np.ndarray:
    """So many numbers of `width` bits, int64, of the RLE and bit-packing hybrid encoding."""
    if not 1 <= width <= 32:
        raise ValueError
    found = np.empty(count, np.int64)
    filled = at = 0
    size = (width + 7) // 8
    while filled < count:
        run, at = read_varint(data, at)
        if run & 1:
            # Groups of eight, the lowest bit first; the last may be filled up.
            groups = min(run >> 1, (count - filled + 7) // 8)
            packed = np.frombuffer(data[at : at + groups * width], np.uint8)
            at += (run >> 1) * width
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
