"""Files -> chunks of raw input, for offline scoring: Parquet, CSV and .npz.

A chunk carries the rows that could be encoded, the reason for each that could not, and the
columns to pass through. The rules themselves are `artifacts.cells` and `artifacts.pixels`.
"""

from __future__ import annotations

import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.parquet as pq

from artifacts.cells import check_columns, encode_columns
from artifacts.errors import DataError
from artifacts.manifest import ImageInput, TableInput, input_name
from artifacts.pixels import check_pixels, decode_image

SUFFIXES = (".parquet", ".csv", ".csv.gz", ".npz")
# Where a Parquet file may hold pictures: encoded (bytes, or {bytes, path} as Hugging Face writes
# them), or as C * H * W pixels (fixed-size binary, or lists of integers).
IMAGE_COLUMNS = ("image", "images", "pixels")
_CHUNK_ROWS = 65_536
_CHUNK_BYTES = 64 * 2**20


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
            raise DataError(f"{path}: expected a file that ends in {', '.join(SUFFIXES)}")
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def _read_parquet(path: Path, spec: ImageInput | TableInput, most: int) -> Iterator[Chunk]:
    with pq.ParquetFile(path) as file:
        start = 0
        # Says at once what is wrong with the columns, in a file without rows too.
        _encode(path, np.arange(0), file.schema_arrow.empty_table(), spec)
        for batch in file.iter_batches(batch_size=most):
            rows = np.arange(start, start + len(batch))
            yield _encode(path, rows, pa.Table.from_batches([batch]), spec)
            start += len(batch)


def _read_csv(path: Path, spec: ImageInput | TableInput, most: int) -> Iterator[Chunk]:
    """Every cell is read as text: pyarrow guesses types from the first block of a file, and a
    later block that differs would end the job. Passed-through columns stay as they were written.
    """
    if isinstance(spec, ImageInput):
        raise DataError(f"{path}: a model of pictures takes .parquet or .npz files, not CSV")
    ragged: dict[int, str] = {}

    def skip(row: Any) -> str:
        # Its number counts from 1, with the header.
        ragged[row.number - 2] = (
            f"expected {row.expected_columns} cells, found {row.actual_columns}"
        )
        return "skip"

    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=skip)
    # The numbers of ragged rows are known only without threads.
    read = pyarrow.csv.ReadOptions(use_threads=False)
    with pyarrow.csv.open_csv(path, read_options=read, parse_options=parse) as reader:
        names = reader.schema.names
    check_columns(names, spec, extra_allowed=True)
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
                chunk = _encode(path, rows, table, spec)
                passed_by = sorted(row for row in ragged if row < start)
                chunk.rejected.extend((row, ragged.pop(row)) for row in passed_by)
                yield chunk
    if ragged:
        empty = np.empty((0, *spec.shape))
        yield Chunk(np.arange(0), empty, pa.table({}), sorted(ragged.items()))


def _read_npz(path: Path, spec: ImageInput | TableInput, most: int) -> Iterator[Chunk]:
    try:
        with np.load(path, allow_pickle=False) as arrays:
            name = next((key for key in (input_name(spec), "x") if key in arrays), None)
            found = sorted(arrays)
            array = arrays[name] if name else None
    except (ValueError, AttributeError, zipfile.BadZipFile, EOFError) as error:
        raise DataError(f"{path}: not an .npz file of plain arrays: {error}") from error
    if array is None:
        raise DataError(f"{path}: expected an array {input_name(spec)!r} or 'x', found {found}")
    if isinstance(spec, TableInput) and (
        array.ndim != 2 or array.shape[1] != len(spec.columns) or array.dtype.kind not in "fiub"
    ):
        raise DataError(
            f"{path}: {name}: expected numbers of shape [N, {len(spec.columns)}], "
            f"found {array.dtype} {list(array.shape)}"
        )
    for start in range(0, len(array), most):
        part = array[start : start + most]
        rows = np.arange(start, start + len(part))
        bad: dict[int, str] = {}
        if isinstance(spec, ImageInput):
            try:
                raw = check_pixels(part, spec)
            except DataError as error:
                raise DataError(f"{path}: {name}: {error}") from error
        else:
            raw, bad = encode_columns(list(part.astype(np.float64).T), spec)
        yield _chunk(rows, raw, None, bad)


def _encode(path: Path, rows: np.ndarray, table: pa.Table, spec: ImageInput | TableInput) -> Chunk:
    try:
        if isinstance(spec, ImageInput):
            name = next((key for key in IMAGE_COLUMNS if key in table.column_names), None)
            if name is None:
                raise DataError(
                    f"expected a column {' or '.join(map(repr, IMAGE_COLUMNS))}, "
                    f"found {table.column_names}"
                )
            raw, bad = _pictures(name, table.column(name).combine_chunks(), spec)
            passed = table.drop_columns([name])
        else:
            check_columns(table.column_names, spec, extra_allowed=True)
            cells = [_cells(column.name, table.column(column.name)) for column in spec.columns]
            raw, bad = encode_columns(cells, spec)
            passed = table
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    return _chunk(rows, raw, passed, bad)


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


def _cells(name: str, column: pa.ChunkedArray) -> np.ndarray | list[Any]:
    """A column as float64 with NaN for missing cells, or as the texts that it holds."""
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        try:
            array = pc.cast(array, pa.float64())
        except pa.ArrowInvalid:
            # Some cell is no number: cell by cell, to say which.
            return list(array.to_pylist())
    elif pa.types.is_null(kind):
        array = array.cast(pa.float64())
    elif not (
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_boolean(kind)
        or pa.types.is_decimal(kind)
    ):
        raise DataError(f"column {name!r}: expected numbers, found {kind}")
    if pa.types.is_boolean(kind):
        array = array.cast(pa.uint8())
    numbers = pc.cast(array, pa.float64(), safe=False)
    return np.array(pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False))


def _pictures(name: str, array: pa.Array, spec: ImageInput) -> tuple[np.ndarray, dict[int, str]]:
    """A Parquet column as uint8 [N, C, H, W], and what is wrong with the bad rows."""
    kind = array.type
    size = spec.channels * spec.height * spec.width
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        return _decoded(name, array.field("bytes").to_pylist(), spec)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        return _decoded(name, array.to_pylist(), spec)
    raw = np.zeros((len(array), *spec.shape), dtype=np.uint8)
    bad: dict[int, str] = {}
    if pa.types.is_fixed_size_binary(kind) and kind.byte_width == size:
        for position, pixels in enumerate(array.to_pylist()):
            if pixels is None:
                bad[position] = f"column {name!r}: the value is missing"
            else:
                raw[position] = np.frombuffer(pixels, dtype=np.uint8).reshape(spec.shape)
        return raw, bad
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    if (lists or pa.types.is_fixed_size_list(kind)) and pa.types.is_integer(kind.value_type):
        for position, pixels in enumerate(array.to_pylist()):
            if pixels is None or None in pixels:
                bad[position] = f"column {name!r}: the value is missing"
            elif len(pixels) != size:
                bad[position] = f"column {name!r}: expected {size} pixels, found {len(pixels)}"
            elif min(pixels) < 0 or max(pixels) > 255:
                bad[position] = f"column {name!r}: expected pixels from 0 to 255, found others"
            else:
                raw[position] = np.array(pixels, dtype=np.uint8).reshape(spec.shape)
        return raw, bad
    raise DataError(
        f"column {name!r}: expected encoded pictures (binary, or a struct with bytes) or {size} "
        f"pixels (fixed-size binary, or lists of integers), found {kind}"
    )


def _decoded(
    name: str, encoded: list[bytes | None], spec: ImageInput
) -> tuple[np.ndarray, dict[int, str]]:
    raw = np.zeros((len(encoded), *spec.shape), dtype=np.uint8)
    bad: dict[int, str] = {}
    for position, data in enumerate(encoded):
        try:
            if data is None:
                raise DataError("the value is missing")
            raw[position] = decode_image(data, spec)
        except DataError as error:
            bad[position] = f"column {name!r}: {error}"
    return raw, bad
