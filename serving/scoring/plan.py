"""What a job will do: the columns that it needs, and its input in units."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import replace

import numpy as np
import pyarrow as pa

from artifacts.arrow import IMAGE_COLUMNS, encode_pictures, encode_table, image_column
from artifacts.errors import DataError, nearest
from artifacts.inputs import ImageInput, TableInput
from artifacts.manifest import Manifest
from serving.scoring.chunks import Block, wanted_columns, with_partitions
from serving.scoring.open import open_reader
from serving.scoring.scorer import TRIES, UNREADABLE, no_more
from serving.scoring.sources import Source
from serving.scoring.true_labels import true_labels
from serving.scoring.units import Reader, Unit, UnitSize

_ARRAYS = ("npz", "npy")


def passed_columns(
    sources: Sequence[Source],
    manifest: Manifest,
    columns: Sequence[str] | None,
    target: str | None,
) -> pa.Schema:
    """The columns that are written again, with their types in the first file that can be read.

    columns: their names; None: all, without pictures, and of arrays none. target: a column of
    labels. Raises DataError where no file can be read, or that one does not suit the model.
    """
    source, schema = _first_schema(sources, manifest)
    try:
        if source.format not in _ARRAYS:
            values = with_partitions(Block(np.arange(0), schema.empty_table()), source).values
            assert isinstance(values, pa.Table)
            schema = values.schema
            _check_columns(schema, manifest.input)
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error
    if target is not None:
        _check_target(source, schema, target, manifest.labels)
    return pa.schema([schema.field(name) for name in _names(source, schema, manifest, columns)])


def units_of(sources: Sequence[Source], manifest: Manifest, limit: int | None) -> Iterator[Unit]:
    """All of them, up to the limit; where a source can be read no further, one that says why."""
    left = limit
    for source in sources:
        number = first = 0
        try:
            with closing(_opened(source, manifest)) as reader:
                for unit in reader.units():
                    if left == 0:
                        return
                    if left is not None:
                        rows = _count(reader, left) if unit.rows is None else unit.rows
                        rows = min(rows, left)
                        left -= rows
                        unit = _cut(unit, rows)
                    yield unit
                    number, first = unit.number + 1, unit.first_row + (unit.rows or 0)
        except UNREADABLE as error:
            yield Unit(source.number, number, first, None, error=no_more(error))


def _first_schema(sources: Sequence[Source], manifest: Manifest) -> tuple[Source, pa.Schema]:
    first: DataError | None = None
    for source in sources:
        try:
            with closing(_opened(source, manifest)) as reader:
                return source, reader.schema
        except DataError as error:
            first = first or DataError(f"{source.name}: {error}")
    assert first is not None
    raise first


def _check_columns(schema: pa.Schema, spec: ImageInput | TableInput) -> None:
    table = schema.empty_table()
    if isinstance(spec, ImageInput):
        name = image_column(schema)
        encode_pictures(name, table.column(name), spec)
        return
    try:
        encode_table(table, spec)
    except DataError as error:
        wanted = wanted_columns(schema, spec, ())
        missing = [column.name for column in spec.columns if column.name not in wanted]
        others = [name for name in schema.names if name not in wanted]
        hints = [nearest(name, others) for name in missing]
        raise DataError(f"{error}{next((hint for hint in hints if hint), '')}") from error


def _check_target(source: Source, schema: pa.Schema, target: str, labels: tuple[str, ...]) -> None:
    if target not in schema.names:
        raise DataError(
            f"--target: {source.name} has no column {target!r}{nearest(target, schema.names)}"
        )
    try:
        true_labels(pa.nulls(0, schema.field(target).type), labels)
    except DataError as error:
        raise DataError(f"--target {target}: {error}") from error


def _names(
    source: Source, schema: pa.Schema, manifest: Manifest, columns: Sequence[str] | None
) -> list[str]:
    pictures = IMAGE_COLUMNS if isinstance(manifest.input, ImageInput) else ()
    there = [name for name in schema.names if name not in pictures]
    if columns is None:
        if source.format in _ARRAYS:
            return []
        # One that is made of the path is there for who asks for it.
        made = source.format in ("pictures", "list", "tar")
        return [name for name in there if not (made and name == "folder")]
    for name in columns:
        if name not in there:
            found = ", ".join(map(repr, there[:20])) or "none"
            raise DataError(
                f"--columns: {source.name} has no column {name!r} to be written again, "
                f"found {found}{nearest(name, there)}"
            )
    return list(dict.fromkeys(columns))


def _opened(source: Source, manifest: Manifest) -> Reader:
    """Tried again where a connection may have been lost."""
    size = UnitSize.of(len(manifest.labels))
    for tried in range(1, TRIES):
        try:
            return open_reader(source, manifest.input, size)
        except DataError as error:
            if source.is_local or not isinstance(error.__cause__, OSError):
                raise
            time.sleep(tried)
    return open_reader(source, manifest.input, size)


def _count(reader: Reader, most: int) -> int:
    rows = 0
    for unit, _ in reader.stream(()):
        rows += unit.rows or 0
        if rows >= most:
            return most
    return rows


def _cut(unit: Unit, rows: int) -> Unit:
    return replace(unit, most=rows) if unit.rows is None else replace(unit, rows=rows)
