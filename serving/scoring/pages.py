"""Pixels in a local Parquet file, as values of a fixed size or lists of bytes, read page by page.

Pages before those that are wanted are passed by their headers, not decoded; one of plain values of
a fixed size that is not compressed is a view of the file. pyarrow decodes a row group from its
start, copies each value three times, and of lists looks at the levels of each pixel; for small
models that takes as long as the model, or twice as long. What is unlike that, nulls or lists of
another length or a damaged page for instance, is left to pyarrow: `Unlike` is raised.

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
from serving.scoring.runs import are_all, are_lists, looked_up, numbers
from serving.scoring.thrift import read_struct, read_varint

# parquet.thrift: PageType, Encoding, and the fields of PageHeader and what is in it.
_DATA, _DICTIONARY, _DATA_V2 = 0, 2, 3
_PLAIN, _PLAIN_DICTIONARY, _RLE, _RLE_DICTIONARY = 0, 2, 3, 8
# Gzip takes longer than pyarrow's copies do.
_CODECS = {"UNCOMPRESSED": None, "SNAPPY": "snappy", "ZSTD": "zstd"}
# Most headers fit in the first; statistics of long values make them longer.
_HEADER_BYTES = (2**12, 2**16)
# Values of a page, and how much longer its bytes may be than they are: more is no writer's.
_MOST_VALUES = 2**24
_LEVELS_BYTES = 2**16
_DAMAGED = (ValueError, LookupError, OverflowError, OSError, MemoryError, pa.ArrowException)


class Unlike(Exception):
    """What is here is for pyarrow to read, or to refuse."""


@dataclass(frozen=True)
class _Page:
    """first, count: of its values among the file's. at, size, full_size: its bytes in the file, and
    without compression. levels: in version 2 the bytes of repetition and of definition levels,
    which are not compressed; None in version 1."""

    first: int
    count: int
    encoding: int
    at: int
    size: int
    full_size: int
    is_compressed: bool
    levels: tuple[int, int] | None


class Pages:
    """A column of pixels, `width` bytes in each row."""

    def __init__(self, path: str, metadata: pq.FileMetaData, name: str, width: int) -> None:
        """metadata: of the file; name: of a column at the top level, which Arrow has as binary of
        this width, or as lists of uint8.

        Raises Unlike where its pages cannot be such ones, or OSError.
        """
        self.name = name
        self._metadata, self._width = metadata, width
        schema = metadata.schema
        paths = [schema.column(index).path for index in range(len(schema.names))]
        tops = [path.partition(".")[0] for path in paths]
        if tops.count(name) != 1:
            raise Unlike
        self._column = tops.index(name)
        described = schema.column(self._column)
        self._is_listed = described.max_repetition_level == 1
        self._defined = described.max_definition_level
        if self._is_listed:
            is_like = described.physical_type == "INT32" and self._defined <= 3
            # Values of a row; bytes of one as it is stored, and as it is read.
            self._per_row, self._stored_bytes, self._value_bytes = width, 4, 1
        else:
            is_like = (
                (described.physical_type, described.length) == ("FIXED_LEN_BYTE_ARRAY", width)
                and described.max_repetition_level == 0
                and self._defined <= 1
            )
            self._per_row, self._stored_bytes, self._value_bytes = 1, width, width
        if not is_like:
            raise Unlike
        rows = [metadata.row_group(index).num_rows for index in range(metadata.num_row_groups)]
        # The value with which each row group begins, and the end.
        self._starts = np.cumsum([0, *rows]) * self._per_row
        self._file = MappedFile(path)
        self._group = -1
        self._pages: Iterator[_Page] = iter(())
        # Those of the row group that were found on the way, and the values of the last one.
        self._found: list[_Page] = []
        self._dictionary: np.ndarray | None = None
        self._held: tuple[int, np.ndarray, np.ndarray | None] | None = None

    def read(self, first: int, stop: int) -> pa.ChunkedArray:
        """Rows from `first` up to `stop` as binary of the column's width; where a page's values
        are those of whole rows, an array of each, where they lie.

        Raises Unlike, or DataError where rows are lost, of which pyarrow says nothing.
        """
        kind = pa.binary(self._width)
        pieces = list(self._pieces(first * self._per_row, stop * self._per_row))
        buffers = [_joined(pieces)] if self._is_listed else [pa.py_buffer(one) for one in pieces]
        arrays = [
            pa.FixedSizeBinaryArray.from_buffers(kind, buffer.size // self._width, [None, buffer])
            for buffer in buffers
        ]
        return pa.chunked_array(arrays, kind)

    def _pieces(self, at: int, stop: int) -> Iterator[np.ndarray]:
        """Values, uint8 [N, bytes of a value], of each page."""
        while at < stop:
            try:
                page = self._page(at)
                values, indices = self._values(page)
            except DataError:
                raise
            except _DAMAGED as error:
                raise Unlike from error
            inside = slice(at - page.first, stop - page.first)
            # A dictionary's few bytes may stand for any number of rows.
            wanted = values[inside] if indices is None else values[indices[inside]]
            yield wanted
            at += len(wanted)

    def close(self) -> None:
        """Let the file go."""
        self._held = None
        self._file.close()

    def _page(self, value: int) -> _Page:
        group = int(np.searchsorted(self._starts, value, side="right")) - 1
        if group != self._group:
            self._group, self._found, self._dictionary, self._held = group, [], None, None
            self._pages = self._walk(group)
        if self._found and value < self._found[-1].first + self._found[-1].count:
            after = bisect_right(self._found, value, key=lambda page: page.first)
            return self._found[after - 1]
        for page in self._pages:
            self._found.append(page)
            if value < page.first + page.count:
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
        self._file.read_ahead(end)
        first, stop = map(int, self._starts[group : group + 2])
        if chunk.num_values != stop - first:
            # Lists of another length.
            raise Unlike
        while first < stop:
            if at >= end:
                # What follows is another column's, or another row group's.
                raise self._lost(group, f"{stop - first} fewer")
            header, length = self._header(at)
            at += length
            kind, full_size, size = (_number(header, field) for field in (1, 2, 3))
            if size < 0:
                raise ValueError
            if kind == _DICTIONARY:
                count = _number(header[7], 1)
                self._check_size(count, full_size)
                self._dictionary = self._plain(self._bytes(at, size, full_size, group), count)
            elif kind in (_DATA, _DATA_V2):
                page = self._described(header[8 if kind == _DATA_V2 else 5], first, at, header)
                if page.count > stop - first:
                    raise self._lost(group, f"at least {page.count - stop + first} more")
                # Some writers begin with an empty one.
                if page.count:
                    yield page
                first += page.count
            else:
                # pyarrow passes it, and gives its rows the values of those after them.
                raise self._lost(group, f"a page of an unknown kind, {kind}")
            at += size

    def _described(self, fields: Any, first: int, at: int, header: dict[int, Any]) -> _Page:
        """A page of data by its own header, `fields`, and the one around that."""
        second = _number(header, 1) == _DATA_V2
        count, full_size = _number(fields, 1), _number(header, 2)
        self._check_size(count, full_size)
        levels = None
        if second:
            levels = (_number(fields, 6), _number(fields, 5))
        # Packed as they were before Parquet 2.
        elif (self._defined and fields[3] != _RLE) or (self._is_listed and fields[4] != _RLE):
            raise Unlike
        return _Page(
            first, count, _number(fields, 4 if second else 2), at, _number(header, 3), full_size,
            bool(fields.get(7, True)) if second else True, levels,
        )  # fmt: skip

    def _lost(self, group: int, found: str) -> DataError:
        first, stop = self._starts[group : group + 2]
        return DataError(
            f"column {self.name!r}, row group {group}: damaged: expected {stop - first} values in "
            f"its pages, found {found}"
        )

    def _check_size(self, count: int, full_size: int) -> None:
        """Raise Unlike for what would take more memory than its values."""
        most = count * (self._stored_bytes + 1) + _LEVELS_BYTES
        if not 0 <= count <= _MOST_VALUES or not 0 <= full_size <= most:
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
        data = self._stored(at, size)
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
        """uint8 [count, bytes of a value]; or those of a dictionary, and int64 [count] into it."""
        if self._held is not None and self._held[0] == page.first:
            return self._held[1:]
        repeated, defined, data = self._parts(page)
        if self._is_listed and not are_lists(repeated, page.first, page.count, self._width):
            raise Unlike
        bits = self._defined.bit_length()
        if bits and not are_all(defined, bits, page.count, self._defined):
            raise Unlike
        indices = None
        if page.encoding == _PLAIN:
            values = self._plain(data, page.count)
        elif page.encoding not in (_PLAIN_DICTIONARY, _RLE_DICTIONARY) or self._dictionary is None:
            raise Unlike
        elif self._is_listed:
            values = looked_up(self._dictionary[:, 0], data, page.count)[:, None]
        else:
            values, indices = self._dictionary, numbers(data[1:], data[0], page.count)
            if indices.max() >= len(values):
                raise ValueError
        self._held = (page.first, values, indices)
        return values, indices

    def _parts(self, page: _Page) -> tuple[memoryview, memoryview, memoryview]:
        """Repetition levels, definition levels, values; no bytes of levels that there are not."""
        if page.levels is None:
            data = self._bytes(page.at, page.size, page.full_size, self._group)
            repeated, data = _cut(data) if self._is_listed else (data[:0], data)
            defined, data = _cut(data) if self._defined else (data[:0], data)
            return repeated, defined, data
        both = sum(page.levels)
        if min(page.levels) < 0 or both > page.size:
            raise ValueError
        levels = self._stored(page.at, both)
        at, size = page.at + both, page.size - both
        if page.is_compressed:
            data = self._bytes(at, size, page.full_size - both, self._group)
        else:
            data = self._stored(at, size)
        return levels[: page.levels[0]], levels[page.levels[0] :], data

    def _stored(self, at: int, size: int) -> memoryview:
        self._file.seek(at)
        return memoryview(self._file.read(size))

    def _plain(self, data: memoryview, count: int) -> np.ndarray:
        """uint8 [count, bytes of a value]."""
        if len(data) != count * self._stored_bytes:
            raise ValueError
        if not self._is_listed:
            return np.frombuffer(data, np.uint8).reshape(count, self._width)
        values = np.frombuffer(data, "<u4")
        if count and values.max() > np.iinfo(np.uint8).max:
            raise ValueError
        return values.astype(np.uint8)[:, None]


def _cut(data: memoryview) -> tuple[memoryview, memoryview]:
    """As many bytes as the first four say, and those after them."""
    end = 4 + int.from_bytes(data[:4], "little")
    if end > len(data):
        raise ValueError
    return data[4:end], data[end:]


def _joined(pieces: list[np.ndarray]) -> pa.Buffer:
    """A page may end within a list."""
    # Arrow's allocator gives the last chunk's memory, whose pages are there.
    buffer = pa.allocate_buffer(sum(piece.size for piece in pieces))
    np.concatenate(pieces, out=np.frombuffer(buffer, np.uint8).reshape(-1, 1))
    return buffer


def _number(fields: Any, field: int) -> int:
    """What is none is damage."""
    found = fields[field] if isinstance(fields, dict) else None
    if type(found) is not int:
        raise ValueError
    return found
