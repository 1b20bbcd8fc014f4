"""CSV and JSON lines, also compressed.

A local file is cut where records end, and its pieces are read by several processes; one that is
compressed, or elsewhere, is read once, from its start.
"""

from __future__ import annotations

import base64
import binascii
import json
import zlib
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from artifacts.errors import DataError
from artifacts.inputs import ImageInput, TableInput
from serving.scoring.chunks import Block, cell_text, chunk_rows
from serving.scoring.cutting import (
    Piece,
    cut_csv,
    cut_lines,
    parse_csv_piece,
    read_header,
    skip_bom,
    split_lines,
    with_bytes,
)
from serving.scoring.sources import Source
from serving.scoring.units import Unit, UnitSize

_READ_BYTES = 2**20


class _TextReader:
    """What both have in common: a subclass cuts, and parses."""

    schema: pa.Schema

    def __init__(self, source: Source, spec: ImageInput | TableInput, size: UnitSize) -> None:
        self._source = source
        self._unit_bytes = size.bytes
        self._spec = spec
        self._chunk_rows = chunk_rows(spec)
        self._can_seek = source.is_local and not source.compressed
        self._file: pa.NativeFile | None = None

    def _skip(self, blocks: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
        """The bytes before the first row, and the text from there on."""
        raise NotImplementedError

    def _cut(self, blocks: Iterable[bytes], offset: int) -> Iterator[Piece]:
        raise NotImplementedError

    def _parse(self, data: bytes, piece: Piece, columns: Sequence[str]) -> Iterator[Block]:
        raise NotImplementedError

    def units(self) -> Iterator[Unit]:
        """The file is read for it, though not parsed: some 1 GB/s."""
        if not self._can_seek:
            yield Unit(self._source.number, 0, 0, None, None, self._source.size)
            return
        offset, rest = self._skip(_read(self._source))
        for number, piece in enumerate(self._cut(rest, offset)):
            yield _unit(self._source, number, piece)

    def blocks(self, unit: Unit, columns: Sequence[str]) -> Iterator[Block]:
        """From its place in the file."""
        if self._file is None:
            self._file = self._source.open()
        data = self._file.read_at(unit.place.length, unit.place.offset)
        yield from self._parse(data, unit.place, columns)

    def stream(self, columns: Sequence[str]) -> Iterator[tuple[Unit, Iterator[Block]]]:
        """Those whose blocks are not asked for are not parsed."""
        for number, (piece, data) in enumerate(self._pieces()):
            yield _unit(self._source, number, piece), self._parse(data, piece, columns)

    def _pieces(self) -> Iterator[tuple[Piece, bytes]]:
        offset, rest = self._skip(_read(self._source))
        return with_bytes(rest, lambda blocks: self._cut(blocks, offset))

    def close(self) -> None:
        """Let the file go."""
        if self._file is not None:
            self._file.close()


class CsvReader(_TextReader):
    """Every cell is read as text: types that are guessed from some rows do not hold for others."""

    def __init__(self, source: Source, spec: ImageInput | TableInput, size: UnitSize) -> None:
        super().__init__(source, spec, size)
        blocks = _read(source)
        self._names, _, _ = read_header(blocks)
        self.schema = pa.schema([(name, pa.string()) for name in self._names])

    def _skip(self, blocks: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
        _, offset, rest = read_header(blocks)
        return offset, rest

    def _cut(self, blocks: Iterable[bytes], offset: int) -> Iterator[Piece]:
        return cut_csv(blocks, self._unit_bytes, columns=len(self._names), offset=offset)

    def _parse(self, data: bytes, piece: Piece, columns: Sequence[str]) -> Iterator[Block]:
        if not columns:
            raise DataError(f"none of the model's columns is there, found {self._names[:20]}")
        table, rows, rejected = self._parse_all(data, piece, columns)
        passed = 0
        for start in range(0, max(1, len(rows)), self._chunk_rows):
            stop = start + self._chunk_rows
            end = int(rows[stop]) if stop < len(rows) else piece.first_row + piece.rows
            before = passed
            while passed < len(rejected) and rejected[passed][0] < end:
                passed += 1
            part = table.slice(start, self._chunk_rows)
            yield Block(rows[start:stop], part, None, rejected[before:passed])

    def _parse_all(
        self, data: bytes, piece: Piece, columns: Sequence[str]
    ) -> tuple[pa.Table, np.ndarray, list[tuple[int, str]]]:
        try:
            return parse_csv_piece(data, self._names, piece, include_columns=columns)
        except DataError:
            # Where a cell is no text, its row alone is rejected.
            table, rows, rejected = parse_csv_piece(
                data, self._names, piece, include_columns=columns, kind=pa.binary()
            )
        good = np.ones(len(rows), dtype=bool)
        for name, column in zip(table.column_names, table.columns, strict=True):
            for row in np.flatnonzero([not _is_text(cell) for cell in column.to_pylist()]).tolist():
                if good[row]:
                    rejected.append((int(rows[row]), f"column {name!r}: expected UTF-8"))
                good[row] = False
        texts = table.filter(pa.array(good)).cast(
            pa.schema([(name, pa.string()) for name in table.column_names])
        )
        return texts, rows[good], sorted(rejected)


class JsonLinesReader(_TextReader):
    """An object a line, as an instance in a request; {"b64": ...} is a picture.

    Columns are those of the first rows. What is written again of them is text as in the file, or
    JSON where it is none.
    """

    def __init__(self, source: Source, spec: ImageInput | TableInput, size: UnitSize) -> None:
        super().__init__(source, spec, size)
        names: dict[str, None] = {}
        for _, data in self._pieces():
            for line in data.split(b"\n")[:1000]:
                try:
                    found = json.loads(line)
                except ValueError:
                    continue
                if isinstance(found, dict):
                    names.update(dict.fromkeys(found))
            break
        if isinstance(spec, ImageInput):
            names = {"image": None, **{name: None for name in names if name != "b64"}}
        types = {"image": pa.binary()} if isinstance(spec, ImageInput) else {}
        self.schema = pa.schema([(name, types.get(name, pa.string())) for name in names])

    def _skip(self, blocks: Iterator[bytes]) -> tuple[int, Iterator[bytes]]:
        return skip_bom(blocks)

    def _cut(self, blocks: Iterable[bytes], offset: int) -> Iterator[Piece]:
        return cut_lines(blocks, self._unit_bytes, offset=offset)

    def _parse(self, data: bytes, piece: Piece, columns: Sequence[str]) -> Iterator[Block]:
        lines = split_lines(data, piece)
        for start in range(0, len(lines), self._chunk_rows):
            part = lines[start : start + self._chunk_rows]
            yield self._block(part, piece.first_row + start, columns)

    def _block(self, lines: list[bytes], first: int, columns: Sequence[str]) -> Block:
        rows: list[int] = []
        objects: list[dict[str, Any]] = []
        rejected = []
        for row, line in enumerate(lines, first):
            try:
                found = json.loads(line, parse_constant=_no_number)
                if not isinstance(found, dict):
                    raise DataError(f"expected an object, found {type(found).__name__}")
                objects.append(self._checked(found))
                rows.append(row)
            except (ValueError, RecursionError) as error:
                rejected.append((row, f"not JSON: {error}" if not isinstance(error, DataError)
                                 else str(error)))  # fmt: skip
        numbers = np.array(rows, np.int64)
        if isinstance(self._spec, ImageInput):
            others = {name: pa.array([cell_text(o.get(name)) for o in objects], pa.string())
                      for name in columns if name != "image"}  # fmt: skip
            images = pa.array([o["image"] for o in objects], pa.binary())
            return Block(numbers, pa.table({"image": images, **others}), None, rejected)
        cells = {name: [o.get(name) for o in objects] for name in columns}
        return Block(numbers, cells, None, rejected)

    def _checked(self, found: dict[str, Any]) -> dict[str, Any]:
        if isinstance(self._spec, TableInput):
            missing = next((c.name for c in self._spec.columns if c.name not in found), None)
            if missing is not None:
                raise DataError(f"missing column: {missing!r}")
            return found
        encoded = found.get("b64")
        if encoded is None and isinstance(found.get("image"), dict):
            encoded = found["image"].get("b64")
        if not isinstance(encoded, str):
            raise DataError('expected {"b64": "..."}, a picture in base64')
        try:
            return {**found, "image": base64.b64decode(encoded, validate=True)}
        except binascii.Error as error:
            raise DataError(f"b64: not base64: {error}") from error


def _is_text(cell: bytes) -> bool:
    try:
        cell.decode()
    except UnicodeDecodeError:
        return False
    return True


def _no_number(text: str) -> Any:
    raise DataError(f"expected a number, found {text}")


def _unit(source: Source, number: int, piece: Piece) -> Unit:
    size = 0 if source.compressed else piece.length
    return Unit(source.number, number, piece.first_row, piece.rows, piece, size)


def _read(source: Source) -> Iterator[bytes]:
    try:
        with source.stream() as stream:
            while block := stream.read(_READ_BYTES):
                yield block
    except zlib.error as error:
        raise DataError(f"damaged: {error}") from error
