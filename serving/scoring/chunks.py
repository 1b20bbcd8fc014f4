"""Rows on their way to the model: raw input for those that can be scored, a reason for the others.

The rules themselves are `artifacts.cells` and `artifacts.pixels`.
"""

from __future__ import annotations

import json
from collections.abc import Container, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa

from artifacts.arrow import IMAGE_COLUMNS, encode_pictures, encode_table, image_column
from artifacts.cells import check_columns, encode_columns
from artifacts.errors import DataError
from artifacts.inputs import ImageInput, TableInput, input_name
from artifacts.pixels import check_pixels
from serving.scoring.sources import Source

# Enough for the model's largest batches, little enough to stay in a processor's cache.
_CHUNK_BYTES = 8 * 2**20
_MOST_ROWS = 65_536


@dataclass(frozen=True)
class Block:
    """Rows as they were read.

    rows: int64 [N], numbers in their file, from 0. values: their columns, as Arrow's or as lists
    of cells, or raw input of an array's file, [N, ...]. extra: columns beside an array.
    rejected: what could not be read.
    """

    rows: np.ndarray
    values: pa.Table | np.ndarray | dict[str, list[Any]]
    extra: pa.Table | None = None
    rejected: Sequence[tuple[int, str]] = ()


@dataclass(frozen=True)
class Chunk:
    """Rows that can be scored, and what became of those that cannot.

    rows: int64 [N], numbers in their file, from 0; raw: [n, *input shape] of each piece as it lies
    in memory, N in all; passed: columns that are written again, N rows; rejected: row numbers and
    reasons; target: the column of known labels, [N]; known: the same as `true_labels` has them.
    """

    rows: np.ndarray
    raw: Sequence[np.ndarray]
    passed: pa.Table
    rejected: list[tuple[int, str]] = field(default_factory=list)
    target: pa.ChunkedArray | None = None
    known: tuple[np.ndarray, dict[str, int]] | None = None

    @classmethod
    def of_rejected(cls, rejected: list[tuple[int, str]]) -> Chunk:
        """None of its rows can be scored."""
        return cls(np.empty(0, np.int64), (), pa.table({}), sorted(rejected))


def chunk_rows(spec: ImageInput | TableInput) -> int:
    """How many rows to read at a time."""
    row_bytes = int(np.prod(spec.shape)) * (1 if isinstance(spec, ImageInput) else 8)
    return max(1, min(_MOST_ROWS, _CHUNK_BYTES // row_bytes))


def wanted_columns(
    schema: pa.Schema, spec: ImageInput | TableInput, others: Container[str]
) -> list[str]:
    """Of a source's columns those that are needed, in its order."""
    model = IMAGE_COLUMNS if isinstance(spec, ImageInput) else [c.name for c in spec.columns]
    return [name for name in schema.names if name in model or name in others]


def with_partitions(block: Block, source: Source) -> Block:
    """What a partitioned set's path says is the same in all rows; a file's own column comes
    first."""
    values = block.values
    if isinstance(values, dict):
        said = {name: [value] * len(block.rows) for name, value in source.partitions}
        return replace(block, values={**said, **values})
    if isinstance(values, pa.Table):
        for name, value in source.partitions:
            if name not in values.column_names:
                column = pa.repeat(pa.scalar(value, pa.string()), len(values))
                values = values.append_column(name, column)
    return replace(block, values=values)


def encode(
    block: Block, spec: ImageInput | TableInput, *, passed: pa.Schema, target: str | None = None
) -> Chunk:
    """A block's rows as raw input.

    passed: of columns to write again; one that is not there is missing in all rows.
    Raises DataError where none of the rows can be: a column is missing, or of another type.
    """
    count = len(block.rows)
    if isinstance(block.values, np.ndarray):
        raw, bad = _encode_array(block.values, spec)
        pieces = [raw]
        columns = pa.table({}) if block.extra is None else block.extra
    elif isinstance(block.values, dict):
        assert isinstance(spec, TableInput)
        check_columns(list(block.values), spec, extra_allowed=True)
        raw, bad = encode_columns([block.values[column.name] for column in spec.columns], spec)
        pieces = [raw]
        others = [name for name in (*passed.names, target) if name in block.values]
        columns = pa.table({name: _texts(block.values[name]) for name in others})
    else:
        columns = block.values
        if isinstance(spec, TableInput):
            raw, bad = encode_table(columns, spec)
            pieces = [raw]
        else:
            pieces, bad = _encode_pictures(columns, spec)
    kept = pa.table([_column(columns, field, count) for field in passed], schema=passed)
    labels = None
    if target is not None:
        there = target in columns.column_names
        labels = columns.column(target) if there else pa.chunked_array([pa.nulls(count)])
    rows, rejected = block.rows, list(block.rejected)
    if bad:
        good = np.ones(count, dtype=bool)
        good[list(bad)] = False
        rejected += [(int(rows[position]), reason) for position, reason in bad.items()]
        ends = np.cumsum([len(piece) for piece in pieces])
        pieces = [
            piece[part] for piece, part in zip(pieces, np.split(good, ends[:-1]), strict=True)
        ]
        rows = rows[good]
        kept = kept.filter(pa.array(good)) if kept.num_columns else kept
        labels = labels if labels is None else labels.filter(pa.array(good))
    return Chunk(rows, pieces, kept, sorted(rejected), labels)


def _encode_pictures(
    columns: pa.Table, spec: ImageInput
) -> tuple[list[np.ndarray], dict[int, str]]:
    """Of each of Arrow's chunks the pixels, where they lie if they are pixels already; at least
    one."""
    name = image_column(columns.schema)
    column = columns.column(name)
    pieces, bad, at = [], {}, 0
    for array in column.chunks or [column.combine_chunks()]:
        pixels, reasons = encode_pictures(name, array, spec)
        bad.update({at + row: reason for row, reason in reasons.items()})
        pieces.append(pixels)
        at += len(array)
    return pieces, bad


def _texts(cells: list[Any]) -> pa.Array:
    return pa.array([cell_text(cell) for cell in cells], pa.string())


def cell_text(cell: Any) -> str | None:
    """A JSON value as text: a text as it is, another as JSON.

    Half of a surrogate pair, which no file can hold, is as JSON escapes it.
    """
    if cell is None:
        return None
    text = cell if isinstance(cell, str) else json.dumps(cell, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace").decode()


def _column(columns: pa.Table, field: pa.Field, count: int) -> pa.ChunkedArray:
    """With the type that it has in all parts: another file's may differ."""
    if field.name not in columns.column_names:
        return pa.chunked_array([pa.nulls(count, field.type)])
    column = columns.column(field.name)
    if column.type == field.type:
        return column
    try:
        return column.cast(field.type)
    except pa.ArrowException as error:
        raise DataError(
            f"column {field.name!r}: expected {field.type} as in the first file, "
            f"found {column.type}: {error}"
        ) from error


def check_array(name: str, array: np.ndarray, spec: ImageInput | TableInput) -> None:
    """Raise DataError unless this is the model's raw input; its shape and type are looked at.

    array: [N, ...], also without rows.
    """
    if isinstance(spec, ImageInput):
        try:
            check_pixels(array[:1] if array.ndim else array, spec)
        except DataError as error:
            raise DataError(f"{name}: {error}") from error
    elif not spec.only_numbers:
        raise DataError(f"{input_name(spec)}: an array cannot hold other columns than numbers")
    elif array.ndim != 2 or array.shape[1] != len(spec.columns) or array.dtype.kind not in "fiu":
        raise DataError(
            f"{name}: expected numbers of shape [N, {len(spec.columns)}], "
            f"found {array.dtype} {list(array.shape)}"
        )


def _encode_array(
    array: np.ndarray, spec: ImageInput | TableInput
) -> tuple[np.ndarray, dict[int, str]]:
    if isinstance(spec, ImageInput):
        return check_pixels(array, spec), {}
    return encode_columns(list(array.astype(np.float64).T), spec)
