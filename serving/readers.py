"""Files -> chunks of raw input, for offline scoring: Parquet, CSV and .npz.

A chunk carries the rows that could be encoded, the reason for each that could not, and the
columns to pass through. The rules themselves are `artifacts.cells` and `artifacts.pixels`.
"""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from artifacts.arrow import encode_pictures, encode_table, holds_encoded_pictures, image_column
from artifacts.cells import check_columns, encode_columns
from artifacts.errors import DataError
from artifacts.inputs import ImageInput, TableInput, input_name
from artifacts.pixels import check_pixels

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".npz")
_CHUNK_ROWS = 65_536
_CHUNK_BYTES = 64 * 2**20
_CHUNK_PHOTOS = 256
_CSV_BLOCK_BYTES = 16 * 2**20


@dataclass(frozen=True)
class Chunk:
    """Rows that can be scored, and what became of those that cannot.

    rows: int64 [N], numbers in the input, from 0; raw: [N, *input shape]; passed: the input's
    other columns, N rows; rejected: row numbers and reasons.
    """

    rows: np.ndarray
    raw: np.ndarray
    passed: pa.Table
    rejected: list[tuple[int, str]]


def read_chunks(path: Path, spec: ImageInput | TableInput) -> Iterator[Chunk]:
    """The rows of one file, in order, each exactly once.

    Raises DataError for a file that cannot be read or does not hold the model's columns.
    """
    if not path.is_file():
        raise DataError(f"{path}: expected a file ({', '.join(SUFFIXES)}), found none")
    row_bytes = int(np.prod(spec.shape)) * (1 if isinstance(spec, ImageInput) else 8)
    most = max(1, min(_CHUNK_ROWS, _CHUNK_BYTES // row_bytes))
    try:
        if path.name.endswith(".parquet"):
            yield from _read_parquet(path, spec, most)
        elif path.name.endswith((".csv", ".csv.gz")):
            yield from _read_csv(path, spec, most)
        elif path.name.endswith(".npz"):
            yield from _read_npz(path, spec, most)
        else:
            raise DataError(f"expected a file that ends in {', '.join(SUFFIXES)}")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (pa.ArrowException, OSError, UnicodeDecodeError, MemoryError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read_parquet(path: Path, spec: ImageInput | TableInput, most: int) -> Iterator[Chunk]:
    with pq.ParquetFile(path) as file:
        start = 0
        # Says at once what is wrong with the columns, in a file without rows too.
        _encode(np.arange(0), file.schema_arrow.empty_table(), spec)
        if isinstance(spec, ImageInput) and holds_encoded_pictures(file.schema_arrow):
            # A photograph's file is larger than the pixels that are made of it.
            most = min(most, _CHUNK_PHOTOS)
        for batch in file.iter_batches(batch_size=most):
            rows = np.arange(start, start + len(batch))
            yield _encode(rows, pa.Table.from_batches([batch]), spec)
            start += len(batch)


def _read_csv(path: Path, spec: ImageInput | TableInput, most: int) -> Iterator[Chunk]:
    """Every cell is read as text: pyarrow guesses types from the first block of a file, and a
    later block that differs would end the job. Passed-through columns stay as they were written.
    """
    if isinstance(spec, ImageInput):
        raise DataError("a model of pictures takes .parquet or .npz files, not CSV")
    ragged: dict[int, str] = {}

    def skip(row: Any) -> str:
        # Its number counts from 1, with the header.
        ragged[row.number - 2] = (
            f"expected {row.expected_columns} cells, found {row.actual_columns}"
        )
        return "skip"

    # The numbers of ragged rows are known only without threads; a row must fit into a block.
    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=_CSV_BLOCK_BYTES)
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
    with pyarrow.csv.open_csv(path, read_options=read, parse_options=parse) as reader:
        names = reader.schema.names
    check_columns(names, spec, extra_allowed=True)
    # In a file of one column a blank line is a missing cell.
    parse.ignore_empty_lines = len(names) > 1
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    ragged.clear()
    start = 0
    with pyarrow.csv.open_csv(
        path, read_options=read, parse_options=parse, convert_options=convert
    ) as reader:
        for batch in reader:
            for offset in range(0, len(batch), most):
                table = pa.Table.from_batches([batch.slice(offset, most)])
                numbers = np.arange(start, start + len(table) + len(ragged))
                rows = np.setdiff1d(numbers, list(ragged))[: len(table)]
                start = int(rows[-1]) + 1
                chunk = _encode(rows, table, spec)
                passed_by = sorted(row for row in ragged if row < start)
                chunk.rejected.extend((row, ragged.pop(row)) for row in passed_by)
                yield chunk
    if ragged:
        empty = np.empty((0, *spec.shape))
        yield Chunk(np.arange(0), empty, pa.table({}), sorted(ragged.items()))


def _read_npz(path: Path, spec: ImageInput | TableInput, most: int) -> Iterator[Chunk]:
    try:
        with zipfile.ZipFile(path) as archive:
            found = [name.removesuffix(".npy") for name in archive.namelist()]
        name = next((key for key in (input_name(spec), "x") if key in found), None)
        if name is None:
            raise DataError(f"expected an array {input_name(spec)!r} or 'x', found {found}")
        with np.load(path, allow_pickle=False) as arrays:
            array = arrays[name]
    except (
        ValueError,
        TypeError,
        AttributeError,
        EOFError,
        zipfile.BadZipFile,
        zlib.error,
    ) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"not an .npz file of plain arrays: {error}") from error
    if not isinstance(array, np.ndarray):
        raise DataError(f"{name}: expected an array, found something else")
    if isinstance(spec, ImageInput):
        # Names what is wrong with shape or type, in an array without rows too.
        _check(name, array[:1] if array.ndim else array, spec)
    elif not spec.only_numbers:
        raise DataError("a table with other columns than numbers takes .parquet or .csv files")
    elif array.ndim != 2 or array.shape[1] != len(spec.columns) or array.dtype.kind not in "fiu":
        raise DataError(
            f"{name}: expected numbers of shape [N, {len(spec.columns)}], "
            f"found {array.dtype} {list(array.shape)}"
        )
    for start in range(0, len(array), most):
        part = array[start : start + most]
        rows = np.arange(start, start + len(part))
        bad: dict[int, str] = {}
        if isinstance(spec, ImageInput):
            raw = _check(name, part, spec)
        else:
            raw, bad = encode_columns(list(part.astype(np.float64).T), spec)
        yield _chunk(rows, raw, None, bad)


def _check(name: str, array: np.ndarray, spec: ImageInput) -> np.ndarray:
    try:
        return check_pixels(array, spec)
    except DataError as error:
        raise DataError(f"{name}: {error}") from error


def _encode(rows: np.ndarray, table: pa.Table, spec: ImageInput | TableInput) -> Chunk:
    if isinstance(spec, TableInput):
        raw, bad = encode_table(table, spec)
        return _chunk(rows, raw, table, bad)
    name = image_column(table.schema)
    raw, bad = encode_pictures(name, table.column(name).combine_chunks(), spec)
    return _chunk(rows, raw, table.drop_columns([name]), bad)


def _chunk(
    rows: np.ndarray, raw: np.ndarray, passed: pa.Table | None, bad: dict[int, str]
) -> Chunk:
    """Take the bad rows, given by position, out."""
    passed = pa.table({}) if passed is None else passed
    if not bad:
        return Chunk(rows, raw, passed, [])
    good = np.ones(len(rows), dtype=bool)
    good[list(bad)] = False
    kept = passed.filter(pa.array(good)) if passed.num_columns else passed
    rejected = [(int(rows[position]), reason) for position, reason in sorted(bad.items())]
    return Chunk(rows[good], raw[good], kept, rejected)
