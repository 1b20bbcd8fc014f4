"""Arrow columns -> raw input, by the rules of `artifacts.cells` and `artifacts.pixels`.

Training on tables and offline scoring call it. It is fast where Arrow itself knows that a column
holds numbers, and looks at each different value once where it does not.
"""

from __future__ import annotations

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
    if isinstance(column, Column):
        numbers = _numbers(column.name, cells)
        if numbers is not None:
            return encode_column(column, numbers)
    elif not _is_scalar(cells.type):
        raise DataError(f"column {column.name!r}: expected {column.type} cells, found {cells.type}")
    elif isinstance(column, DateColumn) and not _may_be_dates(cells.type):
        raise DataError(f"column {column.name!r}: expected dates, found {cells.type}")
    # Each different cell is parsed once, by the one rule.
    coded = cells.dictionary_encode()
    values, reasons = encode_column(column, [*coded.dictionary.to_pylist(), None])
    places = pc.fill_null(coded.indices, len(coded.dictionary)).to_numpy(zero_copy_only=False)
    places = places.astype(np.int64)
    bad: dict[int, str] = {}
    for place, reason in reasons.items():
        bad.update(dict.fromkeys(np.flatnonzero(places == place).tolist(), reason))
    return values[places], bad


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
    name: str, array: pa.Array, spec: ImageInput
) -> tuple[np.ndarray, dict[int, str]]:
    """uint8 [N, C, H, W] and, by position, what is wrong with the bad rows.

    Raises DataError for a type that cannot hold such pictures.
    """
    kind = array.type
    size = spec.channels * spec.height * spec.width
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        array = pc.struct_field(array, "bytes")
        kind = array.type
    if pa.types.is_binary(kind) or _is_large_binary(kind):
        raw, bad = decode_images(array.to_pylist(), spec)
        return raw, {row: f"column {name!r}: {reason}" for row, reason in bad.items()}
    raw = np.zeros((len(array), *spec.shape), dtype=np.uint8)
    bad = {}
    fixed = pa.types.is_fixed_size_binary(kind) and kind.byte_width == size
    lists = pa.types.is_list(kind) or pa.types.is_large_list(kind)
    lists = lists or pa.types.is_fixed_size_list(kind)
    if not fixed and not (lists and pa.types.is_integer(kind.value_type)):
        raise DataError(
            f"column {name!r}: expected encoded pictures (binary, or a struct with bytes) or "
            f"{size} pixels (fixed-size binary, or lists of integers), found {kind}"
        )
    for row, pixels in enumerate(array.to_pylist()):
        if pixels is None or (lists and None in pixels):
            bad[row] = f"column {name!r}: the value is missing"
        elif len(pixels) != size:
            bad[row] = f"column {name!r}: expected {size} pixels, found {len(pixels)}"
        elif lists and (min(pixels) < 0 or max(pixels) > 255):
            bad[row] = f"column {name!r}: expected pixels from 0 to 255, found others"
        else:
            raw[row] = np.array(list(pixels), dtype=np.uint8).reshape(spec.shape)
    return raw, bad


def _plain(column: pa.ChunkedArray) -> pa.Array:
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    if pa.types.is_timestamp(array.type):
        # Nanoseconds have no counterpart in Python.
        array = pc.cast(array, pa.timestamp("us", tz=array.type.tz), safe=False)
    return array


def _numbers(name: str, array: pa.Array) -> np.ndarray | None:
    """A column as float64 with NaN for missing cells; None where its texts must be parsed."""
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # Arrow is fast, but only what it reads as a finite number is read as `parse_number` would.
        try:
            numbers = pc.cast(array, pa.float64())
        except pa.ArrowInvalid:
            return None
        if not pc.all(pc.is_finite(numbers), skip_nulls=True).as_py():
            return None
    elif pa.types.is_boolean(kind):
        numbers = array.cast(pa.uint8()).cast(pa.float64())
    elif _is_number(kind) or pa.types.is_null(kind):
        numbers = pc.cast(array, pa.float64(), safe=False)
    else:
        raise DataError(f"column {name!r}: expected numbers, found {kind}")
    return np.array(pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False))


def _is_number(kind: pa.DataType) -> bool:
    types = pa.types
    return bool(types.is_floating(kind) or types.is_integer(kind) or types.is_decimal(kind))


def _may_be_dates(kind: pa.DataType) -> bool:
    types = pa.types
    texts = types.is_string(kind) or types.is_large_string(kind)
    return bool(texts or types.is_date(kind) or types.is_timestamp(kind) or types.is_null(kind))


def _is_scalar(kind: pa.DataType) -> bool:
    return bool(_may_be_dates(kind) or _is_number(kind) or pa.types.is_boolean(kind))


def _is_large_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_binary(kind))
