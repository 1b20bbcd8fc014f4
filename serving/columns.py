"""Arrow columns -> raw input, by the rules of `artifacts.cells` and `artifacts.pixels`."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from artifacts.cells import check_columns, encode_columns
from artifacts.errors import DataError
from artifacts.manifest import ImageInput, TableInput
from artifacts.pixels import decode_images

# Where a table may hold pictures: encoded (bytes, or {bytes, path} as Hugging Face writes them),
# or as C * H * W pixels (fixed-size binary, or lists of integers).
IMAGE_COLUMNS = ("image", "images", "pixels")


def encode_table(table: pa.Table, spec: TableInput) -> tuple[np.ndarray, dict[int, str]]:
    """float64 [N, D] and, by position, what is wrong with the bad rows.

    Raises DataError for a column that is not there, there twice, or not of numbers.
    """
    check_columns(table.column_names, spec, extra_allowed=True)
    cells = [_cells(column.name, table.column(column.name)) for column in spec.columns]
    return encode_columns(cells, spec)


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


def _cells(name: str, column: pa.ChunkedArray) -> np.ndarray | list[Any]:
    """A column as float64 with NaN for missing cells, or as the texts that it holds."""
    array = column.combine_chunks()
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    kind = array.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        # Arrow is fast, but only what it reads as a finite number is read as `parse_number` would.
        try:
            numbers = pc.cast(array, pa.float64())
        except pa.ArrowInvalid:
            return list(array.to_pylist())
        if not pc.all(pc.is_finite(numbers), skip_nulls=True).as_py():
            return list(array.to_pylist())
    elif pa.types.is_boolean(kind):
        numbers = array.cast(pa.uint8()).cast(pa.float64())
    elif (
        pa.types.is_floating(kind)
        or pa.types.is_integer(kind)
        or pa.types.is_decimal(kind)
        or pa.types.is_null(kind)
    ):
        numbers = pc.cast(array, pa.float64(), safe=False)
    else:
        raise DataError(f"column {name!r}: expected numbers, found {kind}")
    return np.array(pc.fill_null(numbers, float("nan")).to_numpy(zero_copy_only=False))


def _is_large_binary(kind: pa.DataType) -> bool:
    return bool(pa.types.is_large_binary(kind))
