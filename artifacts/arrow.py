"""Arrow columns -> raw input, by the rules of `artifacts.cells` and `artifacts.pixels`.

Training on tables and offline scoring call it. It is fast where Arrow itself knows that a column
holds numbers, and looks at each different value once where it does not.
"""

from __future__ import annotations

import datetime
import json
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.cells import ColumnSpec, check_columns, encode_column
from artifacts.errors import DataError
from artifacts.inputs import Column, DateColumn, ImageInput, TableInput
from artifacts.pixels import decode_images

# Where a table may hold pictures: encoded (bytes, or {bytes, path} as Hugging Face writes them),
# or as C * H * W pixels (fixed-size binary, or lists of integers).
IMAGE_COLUMNS = ("image", "images", "pixels")
_EPOCH = datetime.datetime(1970, 1, 1)


def encode_table(table: pa.Table, spec: TableInput) -> tuple[np.ndarray, dict[int, str]]:
    """float64 [N, *spec.shape] and, by position, what is wrong with the bad rows.

    Raises DataError for a column that is not there, there twice, or of a type that cannot be.
    """
    check_columns(table.column_names, spec, extra_allowed=True)
    encoded = []
    bad: dict[int, str] = {}
    for column in spec.columns:
        values, reasons = encode_array(column, table.column(column.name))
        encoded.append(values)
        for row, reason in reasons.items():
            bad.setdefault(row, reason)
    return np.concatenate(encoded, axis=1), bad


def encode_array(column: ColumnSpec, array: pa.ChunkedArray) -> tuple[np.ndarray, dict[int, str]]:
    """`encode_column` for an Arrow column: float64 [N, column.width], and what is wrong by row."""
    cells = _plain(array)
    if not _may_hold(column, cells.type):
        wanted = {
            "number": "numbers",
            "boolean": "booleans",
            "category": "texts, numbers or booleans",
        }
        expected = wanted.get(column.type, "dates")
        raise DataError(f"column {column.name!r}: expected {expected}, found {cells.type}")
    if isinstance(column, Column):
        numbers = _numbers(cells)
        if numbers is not None:
            return encode_column(column, numbers)
    try:
        different, places = code_cells(cells)
    except DataError as error:
        raise DataError(f"column {column.name!r}: {error}") from error
    values, reasons = encode_column(column, different)
    wrong = np.flatnonzero(np.isin(places, list(reasons))).tolist()
    return values[places], {row: reasons[int(places[row])] for row in wrong}


def code_cells(array: pa.Array | pa.ChunkedArray) -> tuple[list[Any], np.ndarray]:
    """A column's different cells, None last, and the place of each row's among them, int [N].

    So that each different cell is looked at once. Raises DataError for a text that is not UTF-8.
    """
    cells = _plain(array)
    if pa.types.is_float16(cells.type):
        cells = pc.cast(cells, pa.float32())
    coded = cells.dictionary_encode()
    try:
        different = _cells(coded.dictionary)
    except UnicodeDecodeError as error:
        raise DataError(f"not UTF-8: {error}") from error
    places = pc.fill_null(coded.indices, len(different)).to_numpy(zero_copy_only=False)
    return [*different, None], places


def class_names(schema: pa.Schema, column: str) -> tuple[str, ...] | None:
    """What a column of integers stands for, where Hugging Face's metadata says it, else None.

    Raises DataError for metadata that are damaged.
    """
    text = (schema.metadata or {}).get(b"huggingface", b"{}")
    try:
        feature = json.loads(text).get("info", {}).get("features", {}).get(column, {})
        names = feature.get("names")
    except (ValueError, AttributeError) as error:
        raise DataError(f"its huggingface metadata is damaged: {error}") from error
    return tuple(map(str, names)) if isinstance(names, list) else None


def image_column(schema: pa.Schema) -> str:
    """The one column that holds pictures. Raises DataError where there is none, or it is twice."""
    found: list[str] = [name for name in schema.names if name in IMAGE_COLUMNS]
    if not found:
        expected = " or ".join(map(repr, IMAGE_COLUMNS))
        raise DataError(f"expected a column {expected}, found {schema.names}")
    if found.count(found[0]) > 1:
        raise DataError(f"column twice: {found[0]!r}")
    return found[0]


def holds_encoded_pictures(schema: pa.Schema) -> bool:
    """Whether the pictures are files, whose size says nothing of their pixels."""
    kind = schema.field(image_column(schema)).type
    return bool(pa.types.is_struct(kind) or pa.types.is_binary(kind) or _is_large_binary(kind))


def encode_pictures(
    name: str, array: pa.Array | pa.ChunkedArray, spec: ImageInput
) -> tuple[np.ndarray, dict[int, str]]:
    """uint8 [N, C, H, W] and, by position, what is wrong with the bad rows.

    Raises DataError for a type that cannot hold such pictures.
    """
    array = joined(array)
    kind = array.type
    size = spec.channels * spec.height * spec.width
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        array = pc.struct_field(array, "bytes")
        kind = array.type
    if pa.types.is_binary(kind) or _is_large_binary(kind):
        raw, bad = decode_images(array.to_pylist(), spec)
        return raw, {row: f"column {name!r}: {reason}" for row, reason in bad.items()}
    fixed = pa.types.is_fixed_size_binary(kind) and kind.byte_width == size
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    lists = lists or pa.types.is_fixed_size_list(kind)
    if not fixed and not (lists and pa.types.is_integer(kind.value_type)):
        raise DataError(
            f"column {name!r}: expected encoded pictures (binary, or a struct with bytes) or "
            f"{size} pixels (fixed-size binary, or lists of integers), found {kind}"
        )
    raw, reasons = _fixed_pixels(array, size) if fixed else _listed_pixels(array, size)
    bad = {row: f"column {name!r}: {reason}" for row, reason in reasons.items()}
    return raw.reshape(len(array), *spec.shape), bad


_MISSING = "the value is missing"


def _fixed_pixels(array: pa.Array, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Fixed-size binary as uint8 [N, size]: Arrow's own memory, not a copy."""
    start = array.offset * size
    data = np.frombuffer(array.buffers()[1] or b"", dtype=np.uint8)
    raw = data[start : start + len(array) * size].reshape(len(array), size)
    missing = np.flatnonzero(_are_null(array)).tolist()
    return raw, dict.fromkeys(missing, _MISSING)


def _listed_pixels(array: pa.Array, size: int) -> tuple[np.ndarray, dict[int, str]]:
    """Lists of integers as uint8 [N, size]; one of bytes alone, all of that size, is no copy."""
    if pa.types.is_fixed_size_list(array.type):
        ends = np.arange(array.offset, array.offset + len(array) + 1) * array.type.list_size
    else:
        ends = array.offsets.to_numpy()
    lengths = np.diff(ends)
    values = array.values.slice(int(ends[0]), int(ends[-1] - ends[0]))
    filled = pc.fill_null(values, 0) if values.null_count else values
    pixels = np.asarray(filled.to_numpy(zero_copy_only=False))
    missing = _are_null(array)
    fit = lengths == size
    inside = slice(None) if fit.all() else np.repeat(fit, lengths)
    found = pixels[inside].reshape(-1, size)
    beyond = np.zeros(len(array), dtype=bool)
    if found.dtype != np.uint8:
        beyond[fit] = ((found < 0) | (found > 255)).any(axis=1)
    if values.null_count:
        nulls = np.repeat(np.arange(len(array)), lengths)[_are_null(values)]
        missing[nulls] = True
    raw = found.astype(np.uint8, copy=False)
    if not fit.all():
        raw = np.zeros((len(array), size), dtype=np.uint8)
        raw[fit] = found
    reasons: dict[int, str] = {}
    for row in np.flatnonzero(missing | ~fit | beyond).tolist():
        if missing[row]:
            reasons[row] = _MISSING
        elif not fit[row]:
            reasons[row] = f"expected {size} pixels, found {lengths[row]}"
        else:
            reasons[row] = "expected pixels from 0 to 255, found others"
    return raw, reasons


def _are_null(array: pa.Array) -> np.ndarray:
    if not array.null_count:
        return np.zeros(len(array), dtype=bool)
    return np.asarray(array.is_null().to_numpy(zero_copy_only=False))


def joined(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    """One array; not copied where it is one already, as `combine_chunks` does."""
    if not isinstance(array, pa.ChunkedArray):
        return array
    return array.chunk(0) if array.num_chunks == 1 else array.combine_chunks()


def _plain(array: pa.Array | pa.ChunkedArray) -> pa.Array:
    cells = joined(array)
    return cells.dictionary_decode() if pa.types.is_dictionary(cells.type) else cells


def _cells(array: pa.Array) -> list[Any]:
    """An array's values as cells, without null ones."""
    kind = array.type
    if pa.types.is_float32(kind):
        return list(array.to_numpy(zero_copy_only=False))
    if not pa.types.is_temporal(kind):
        return list(array.to_pylist())
    # By hand: Python has neither nanoseconds nor years beyond 9999, and needs no zone's rules.
    # A time without a zone is taken as UTC, and one with a zone is kept as UTC.
    days, unit = pa.types.is_date32(kind), "ms" if pa.types.is_date(kind) else kind.unit
    per_second = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[unit]
    cells: list[Any] = []
    for count in pc.cast(array, pa.int32() if days else pa.int64()).to_pylist():
        microseconds = count * 86_400 * 10**6 if days else count * 10**6 // per_second
        try:
            cells.append(_EPOCH + datetime.timedelta(microseconds=microseconds))
        except OverflowError:
            cells.append(f"{count} {'days' if days else unit} since 1970")
    return cells


def _numbers(array: pa.Array) -> np.ndarray | None:
    """A column as float64 with NaN for missing cells; None where its texts must be parsed."""
    if pa.types.is_decimal(array.type):
        # As a text: Arrow's own way to a float is not the nearest one.
        array = pc.cast(array, pa.string())
    texts = _is_text(array.type)
    try:
        numbers = pc.cast(array, pa.float64(), safe=False)
    except pa.ArrowInvalid:
        return None
    # Of texts, only what Arrow reads as a finite number is what `parse_number` reads.
    if texts and not pc.all(pc.is_finite(numbers), skip_nulls=True).as_py():
        return None
    return np.array(pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False))


def _may_hold(column: ColumnSpec, kind: pa.DataType) -> bool:
    """Whether an Arrow type can be a column's at all."""
    types = pa.types
    if types.is_null(kind) or _is_text(kind):
        return True
    if isinstance(column, DateColumn):
        return bool(types.is_date(kind) or types.is_timestamp(kind))
    if types.is_boolean(kind):
        return not isinstance(column, Column)
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind))


def _is_text(kind: pa.DataType) -> bool:
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _is_large_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_binary(kind))
