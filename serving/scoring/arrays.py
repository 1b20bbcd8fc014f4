""".npy files, and the arrays of .npz files."""

from __future__ import annotations

import contextlib
import itertools
import math
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa

from artifacts.errors import DataError
from artifacts.inputs import ImageInput, TableInput, input_name
from serving.scoring.chunks import Block, check_array, chunk_rows
from serving.scoring.mapped import MappedFile
from serving.scoring.sources import Source
from serving.scoring.units import Unit, UnitSize

_BROKEN = (
    MemoryError,
    OverflowError,
    ValueError,
    TypeError,
    EOFError,
    zipfile.BadZipFile,
    zlib.error,
    tokenize.TokenError,
)
_SKIP_BYTES = 2**20


class ArrayReader:
    """Rows are read as they are needed; an array in Fortran's order as a whole."""

    def __init__(self, source: Source, spec: ImageInput | TableInput, size: UnitSize) -> None:
        self._source = source
        self._unit_rows = size.rows
        self._chunk_rows = chunk_rows(spec)
        mapped = source.is_local and source.format == "npy"
        self._file: Any = MappedFile(source.path) if mapped else source.open()
        self._archive: zipfile.ZipFile | None = None
        self._opened: dict[str, _Rows] = {}
        try:
            self._name = self._find(spec)
            rows = self._rows(self._name)
        except _BROKEN as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"not an .{source.format} file of plain arrays: {error}") from error
        check_array(self._name, np.broadcast_to(np.zeros((), rows.dtype), rows.shape), spec)
        self._length = rows.shape[0]
        self.schema = pa.schema(self._columns())

    def _find(self, spec: ImageInput | TableInput) -> str:
        if self._source.format == "npy":
            return input_name(spec)
        self._archive = zipfile.ZipFile(self._file)
        found = self._others()
        name = next((key for key in (input_name(spec), "x") if key in found), None)
        if name is None:
            raise DataError(f"expected an array {input_name(spec)!r} or 'x', found {found}")
        return name

    def _others(self) -> list[str]:
        if self._archive is None:
            return []
        return [name.removesuffix(".npy") for name in self._archive.namelist()]

    def _columns(self) -> Iterator[pa.Field]:
        """Other arrays of one value a row."""
        for name in self._others():
            if name == self._name:
                continue
            try:
                rows = self._rows(name)
                if rows.shape == (self._length,):
                    yield pa.field(name, pa.from_numpy_dtype(rows.dtype))
            except (*_BROKEN, pa.ArrowException):
                # Whatever it is, it is no column.
                continue

    def units(self) -> Iterator[Unit]:
        """Of equal size."""
        pieces = max(1, round(self._length / self._unit_rows))
        ends = [self._length * i // pieces for i in range(pieces + 1)]
        for number, (start, stop) in enumerate(itertools.pairwise(ends)):
            if stop > start:
                size = self._source.size * (stop - start) // self._length
                fresh = self._archive is None or number == 0
                yield Unit(self._source.number, number, start, stop - start, None, size, fresh)

    def blocks(self, unit: Unit, columns: Sequence[str]) -> Iterator[Block]:
        """What lies before it in a compressed array is decompressed and left."""
        assert unit.rows is not None
        stop = unit.first_row + unit.rows
        for start in range(unit.first_row, stop, self._chunk_rows):
            rows = np.arange(start, min(start + self._chunk_rows, stop))
            values = self._read(self._name, start, len(rows))
            extra = {name: self._column(name, start, len(rows)) for name in columns}
            yield Block(rows, values, pa.table(extra) if extra else None)

    def _column(self, name: str, start: int, count: int) -> pa.Array:
        return pa.array(self._read(name, start, count))

    def _read(self, name: str, start: int, count: int) -> np.ndarray:
        try:
            return self._rows(name).read(start, count)
        except _BROKEN as error:
            if isinstance(error, DataError):
                raise
            raise DataError(f"{name}: damaged: {error}") from error

    def _rows(self, name: str) -> _Rows:
        rows = self._opened.get(name)
        if rows is None:
            if self._archive is None:
                rows = _Rows(self._file)
            else:
                with contextlib.suppress(KeyError):
                    name = self._archive.getinfo(f"{name}.npy").filename
                rows = _Rows(self._archive.open(name), archive=(self._archive, name))
            self._opened[name.removesuffix(".npy")] = rows
        return rows

    def stream(self, columns: Sequence[str]) -> Iterator[tuple[Unit, Iterator[Block]]]:
        """Every unit is known."""
        raise NotImplementedError

    def close(self) -> None:
        """Let the file go."""
        self._file.close()


class _Rows:
    """An array in a file, of which rows are read. archive: where going back is opening anew."""

    def __init__(self, file: Any, archive: tuple[zipfile.ZipFile, str] | None = None) -> None:
        self._file = file
        self._archive = archive
        self.shape, self._fortran, self.dtype = _header(file)
        if self.dtype.hasobject:
            raise ValueError("it holds objects")
        self._start = file.tell()
        self._row_bytes = self.dtype.itemsize * math.prod(self.shape[1:])
        self._row = 0
        self._whole: np.ndarray | None = None

    def read(self, start: int, count: int) -> np.ndarray:
        """Rows from `start`, [count, ...]. Raises ValueError where the file ends before."""
        if self._fortran and len(self.shape) > 1:
            if self._whole is None:
                flat = self._take(self.shape[0] * self._row_bytes)
                self._whole = np.frombuffer(flat, self.dtype).reshape(self.shape, order="F")
            return np.ascontiguousarray(self._whole[start : start + count])
        if self._archive is None:
            self._file.seek(self._start + start * self._row_bytes)
        else:
            self._forward(start)
        data = self._take(count * self._row_bytes)
        self._row = start + count
        return np.frombuffer(data, self.dtype).reshape(count, *self.shape[1:])

    def _forward(self, row: int) -> None:
        if row < self._row:
            assert self._archive is not None
            archive, name = self._archive
            self._file = archive.open(name)
            _header(self._file)
            self._row = 0
        left = (row - self._row) * self._row_bytes
        while left:
            left -= len(self._take(min(left, _SKIP_BYTES)))

    def _take(self, size: int) -> bytes | memoryview:
        data: bytes | memoryview = self._file.read(size)
        if len(data) != size:
            raise ValueError(f"expected {size} bytes more, found {len(data)}")
        return data


def _header(file: BinaryIO) -> tuple[tuple[int, ...], bool, np.dtype]:
    version = np.lib.format.read_magic(file)
    read = {
        (1, 0): np.lib.format.read_array_header_1_0,
        (2, 0): np.lib.format.read_array_header_2_0,
    }.get(version)
    if read is None:
        # 3.0 differs from 2.0 in the names of fields alone, of which a plain array has none.
        raise ValueError(f"expected format 1.0 or 2.0, found {version}")
    shape, fortran, dtype = read(file)
    return tuple(shape), bool(fortran), dtype
