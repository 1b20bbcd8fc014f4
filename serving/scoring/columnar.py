"""Parquet and Arrow files."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import suppress

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.arrow import IMAGE_COLUMNS, holds_encoded_pictures
from artifacts.errors import DataError
from artifacts.inputs import ImageInput, TableInput
from serving.scoring.chunks import Block, chunk_rows
from serving.scoring.pages import Pages, Unlike
from serving.scoring.sources import Source
from serving.scoring.units import Unit, UnitSize

# Of encoded pictures: they are larger once they are decoded.
_CHUNK_PICTURES = 64
# Of a unit's cells; not of pixels, which are gone once they are scored.
_HELD_BYTES = 64 * 2**20
# Pixels that come as lists are decoded so many at a time: what is made on the way to them stays in
# a core's cache.
_LISTED_PIXELS = 2**19
# Pages are read as they are needed, not a row group as a whole.
_BUFFER_BYTES, _BUFFER_BYTES_ELSEWHERE = 2**16, 2**20


def _sizes(
    schema: pa.Schema, spec: ImageInput | TableInput, size: UnitSize, row_bytes: float
) -> tuple[int, int]:
    """Rows of a unit, and of a chunk. row_bytes: of a row's cells, pictures apart."""
    most = max(1, int(_HELD_BYTES / max(row_bytes, 1)))
    if (
        isinstance(spec, ImageInput)
        and set(IMAGE_COLUMNS) & set(schema.names)
        and holds_encoded_pictures(schema)
    ):
        return min(size.pictures, most), min(_CHUNK_PICTURES, most)
    return min(size.rows, most), min(chunk_rows(spec), max(1, most // 4))


def _holds_lists(schema: pa.Schema, spec: ImageInput | TableInput) -> bool:
    """Whether pixels come as lists."""
    return isinstance(spec, ImageInput) and any(
        pa.types.is_nested(kind) and not pa.types.is_struct(kind)
        for kind in (schema.field(name).type for name in schema.names if name in IMAGE_COLUMNS)
    )


def _row_bytes(metadata: pq.FileMetaData) -> float:
    """Bytes of a row, uncompressed, on average of the file; of pictures nothing."""
    held = 0
    for group in range(metadata.num_row_groups):
        row_group = metadata.row_group(group)
        for index in range(row_group.num_columns):
            column = row_group.column(index)
            if column.path_in_schema.partition(".")[0] not in IMAGE_COLUMNS:
                held += column.total_uncompressed_size
    return float(held / max(1, metadata.num_rows))


def _pixel_pages(
    source: Source, schema: pa.Schema, metadata: pq.FileMetaData, spec: ImageInput | TableInput
) -> Pages | None:
    """The column of pixels, where it can be read page by page."""
    if not source.is_local or not isinstance(spec, ImageInput):
        return None
    width = math.prod(spec.shape)
    for name in schema.names:
        kind = schema.field(name).type
        if name in IMAGE_COLUMNS and (kind == pa.binary(width) or _is_lists(kind, pa.uint8())):
            with suppress(Unlike, OSError):
                return Pages(source.path, metadata, name, width)
    return None


def _is_lists(kind: pa.DataType, of: pa.DataType) -> bool:
    types = pa.types
    lists = types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind)
    return bool(lists and kind.value_type == of)


def joined_tables(tables: Iterator[pa.Table], rows: int) -> Iterator[pa.Table]:
    """The same rows, about so many at a time: each step from file to answer costs what it costs.

    What was read before an error comes before the error.
    """
    held: list[pa.Table] = []
    try:
        for table in tables:
            held.append(table)
            if sum(map(len, held)) >= rows:
                yield pa.concat_tables(held)
                held = []
    except (DataError, OSError, pa.ArrowException):
        if held:
            yield pa.concat_tables(held)
        raise
    if held:
        yield pa.concat_tables(held)


class ParquetReader:
    """Row groups that are small are joined to units, those that are large are split."""

    def __init__(self, source: Source, spec: ImageInput | TableInput, size: UnitSize) -> None:
        self._source = source
        buffer_bytes = _BUFFER_BYTES if source.is_local else _BUFFER_BYTES_ELSEWHERE
        self._file = pq.ParquetFile(source.open(), buffer_size=buffer_bytes, pre_buffer=False)
        self.schema = self._file.schema_arrow
        metadata = self._file.metadata
        row_bytes = _row_bytes(metadata)
        self._unit_rows, self._chunk_rows = _sizes(self.schema, spec, size, row_bytes)
        self._list_rows = self._chunk_rows
        self._listed = _holds_lists(self.schema, spec)
        if self._listed:
            most = max(1, _LISTED_PIXELS // math.prod(spec.shape))
            self._list_rows = min(self._list_rows, most)
        groups = [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)]
        # The row with which each row group begins, and the end.
        self._starts = np.cumsum([0, *groups])
        self._batches: Iterator[pa.RecordBatch] = iter(())
        self._position = -1
        self._columns: list[str] = []
        self._rest: pa.RecordBatch | None = None
        self._pixels = _pixel_pages(source, self.schema, metadata, spec)

    def units(self) -> Iterator[Unit]:
        """Of equal size, within a row group or of whole ones."""
        total = int(self._starts[-1])
        per_row = self._source.size / max(1, total)
        starts = set(self._starts.tolist())
        number, first = 0, 0
        for stop in self._stops():
            if stop > first:
                size = round((stop - first) * per_row)
                fresh = first in starts
                yield Unit(
                    self._source.number, number, first, stop - first, None, size, fresh,
                    # To decode lists that are left takes longer than to score them.
                    can_cut=not self._listed or self._pixels is not None,
                )  # fmt: skip
                number, first = number + 1, stop

    def _stops(self) -> Iterator[int]:
        first = 0
        for start, stop in zip(self._starts[:-1].tolist(), self._starts[1:].tolist(), strict=True):
            if stop - first < self._unit_rows:
                continue
            if first < start and stop - start >= self._unit_rows:
                # What came before is a unit of its own.
                first = start
                yield first
            pieces = max(1, round((stop - first) / self._unit_rows))
            yield from (first + (stop - first) * i // pieces for i in range(1, pieces + 1))
            first = stop
        yield int(self._starts[-1])

    def blocks(self, unit: Unit, columns: Sequence[str]) -> Iterator[Block]:
        """Pixels page by page; all else, and what is unlike that, by pyarrow."""
        assert unit.rows is not None
        at, stop = unit.first_row, unit.first_row + unit.rows
        if self._pixels is not None and self._pixels.name in columns:
            try:
                for table in self._paged(self._pixels, at, stop, columns):
                    yield Block(np.arange(at, at + len(table)), table)
                    at += len(table)
            except Unlike:
                self._pixels.close()
                self._pixels = None
        for table in joined_tables(self._tables(at, stop, columns), self._chunk_rows):
            yield Block(np.arange(at, at + len(table)), table)
            at += len(table)

    def _paged(
        self, pixels: Pages, first: int, stop: int, columns: Sequence[str]
    ) -> Iterator[pa.Table]:
        others = [name for name in columns if name != pixels.name]
        if not others:
            for start in range(first, stop, self._chunk_rows):
                end = min(start + self._chunk_rows, stop)
                yield pa.table({pixels.name: pixels.read(start, end)})
            return
        for table in self._tables(first, stop, others):
            yield table.append_column(pixels.name, pixels.read(first, first + len(table)))
            first += len(table)

    def _tables(self, first: int, stop: int, columns: Sequence[str]) -> Iterator[pa.Table]:
        """What lies before it in its row group is read and left, unless it was read just now."""
        if first >= stop:
            return
        wanted = list(columns)
        if wanted != self._columns or not 0 <= self._position <= first:
            self._position = -1
        group = int(np.searchsorted(self._starts, first, side="right")) - 1
        start = int(self._starts[group])
        if self._position < start:
            self._rest, self._position, self._columns = None, start, wanted
            pictures = not set(IMAGE_COLUMNS).isdisjoint(wanted)
            self._batches = self._file.iter_batches(
                batch_size=self._list_rows if pictures else self._chunk_rows,
                row_groups=range(group, len(self._starts) - 1),
                columns=wanted,
                use_threads=False,
            )
        while self._position < stop:
            position, self._position = self._position, -1
            batch = self._rest if self._rest is not None else next(self._batches, None)
            if batch is None:
                raise DataError(f"damaged: expected {self._starts[-1]} rows, found {position}")
            skipped = min(max(0, first - position), len(batch))
            taken = batch.slice(skipped, stop - position - skipped)
            after = skipped + len(taken)
            self._rest = batch.slice(after) if after < len(batch) else None
            self._position = position + after
            if len(taken):
                yield pa.Table.from_batches([taken])

    def stream(self, columns: Sequence[str]) -> Iterator[tuple[Unit, Iterator[Block]]]:
        """Every unit is known."""
        raise NotImplementedError

    def close(self) -> None:
        """Let the file go."""
        self._batches = iter(())
        self._file.close(force=True)
        if self._pixels is not None:
            self._pixels.close()


class ArrowReader:
    """Arrow's file format (Feather 2), of which units are whole record batches, and its stream."""

    def __init__(self, source: Source, spec: ImageInput | TableInput, size: UnitSize) -> None:
        self._source, self._unit_bytes = source, size.bytes
        self._file: pa.ipc.RecordBatchFileReader | None = None
        try:
            self._file = pa.ipc.open_file(source.open())
            self.schema = self._file.schema
        except pa.ArrowInvalid:
            with source.stream() as stream, pa.ipc.open_stream(stream) as reader:
                self.schema = reader.schema
        self._unit_rows, self._chunk_rows = _sizes(self.schema, spec, size, 0)

    def units(self) -> Iterator[Unit]:
        """Of a local file; elsewhere counting the rows is reading them."""
        if self._file is None or not self._source.is_local:
            yield Unit(self._source.number, 0, 0, None, None, self._source.size)
            return
        with pa.memory_map(self._source.path) as mapped, pa.ipc.open_file(mapped) as file:
            batches = file.num_record_batches
            per_batch = self._source.size // max(1, batches)
            number = first = begun = rows = held = 0
            for index in range(batches):
                batch = file.get_batch(index)
                rows, held = rows + batch.num_rows, held + batch.nbytes
                full = rows >= self._unit_rows or held >= _HELD_BYTES
                if full or (index == batches - 1 and rows):
                    place = (begun, index + 1)
                    size = per_batch * (index + 1 - begun)
                    yield Unit(self._source.number, number, first, rows, place, size)
                    number, first, begun = number + 1, first + rows, index + 1
                    rows = held = 0

    def blocks(self, unit: Unit, columns: Sequence[str]) -> Iterator[Block]:
        """From its own record batches, where they lie in a local file."""
        first = unit.first_row
        # Mapped for this unit alone, so that memory holds what is in use.
        with pa.memory_map(self._source.path) as mapped, pa.ipc.open_file(mapped) as file:
            for index in range(*unit.place):
                table = pa.Table.from_batches([file.get_batch(index)]).select(list(columns))
                yield from self._blocks(table, first)
                first += len(table)

    def stream(self, columns: Sequence[str]) -> Iterator[tuple[Unit, Iterator[Block]]]:
        """Joined up to a unit's rows or bytes."""
        wanted = list(columns)
        with self._source.stream() as stream, pa.ipc.open_stream(stream) as reader:
            number = first = 0
            held: list[pa.RecordBatch] = []
            for batch in reader:
                held.append(batch)
                rows = sum(map(len, held))
                if rows >= self._unit_rows or sum(one.nbytes for one in held) >= self._unit_bytes:
                    yield self._unit(number, first, held, wanted)
                    number, first, held = number + 1, first + rows, []
            if sum(map(len, held)):
                yield self._unit(number, first, held, wanted)

    def _unit(
        self, number: int, first: int, held: list[pa.RecordBatch], columns: list[str]
    ) -> tuple[Unit, Iterator[Block]]:
        table = pa.Table.from_batches(held)
        unit = Unit(self._source.number, number, first, len(table))
        return unit, self._blocks(table.select(columns), first)

    def _blocks(self, table: pa.Table, first: int) -> Iterator[Block]:
        for start in range(0, len(table), self._chunk_rows):
            part = table.slice(start, self._chunk_rows)
            yield Block(np.arange(first + start, first + start + len(part)), part)

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file = None
