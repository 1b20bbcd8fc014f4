"""CSV and Parquet files, and .npz arrays -> Arrow tables by part."""

from __future__ import annotations

import codecs
import re
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet as pq

from artifacts.errors import DataError

SUFFIXES = (".csv", ".csv.gz", ".parquet", ".npz")
_BLOCK = 16 * 2**20
_PART = re.compile(r"(?P<test>test)|(?P<validation>val|valid|validation)(?![a-z])", re.IGNORECASE)


def read_tables(path: Path, test_path: Path | None) -> dict[str, pa.Table]:
    """Tables by part; "train" is always there.

    path: a file, or a folder whose files are one table; there those whose names begin with test,
    val, valid or validation are those parts. test_path: a file or folder for the test part.
    CSV cells are texts, as they stand. Raises DataError naming the file, and the row or column.
    """
    parts = _by_part(path) if path.is_dir() else {"train": [path]}
    if "train" not in parts:
        raise DataError(f"{path}: expected files of a training part too, found {sorted(parts)}")
    # First, so that it is the others that differ from it.
    parts = {"train": parts.pop("train"), **parts}
    if test_path is not None:
        parts["test"] = sorted(_files(test_path)) if test_path.is_dir() else [test_path]
    first: pa.Schema | None = None
    tables = {}
    for name, files in parts.items():
        pieces = []
        for file in files:
            table = read_table(file)
            first = table.schema if first is None else first
            _check_same(file, table.schema, first)
            pieces.append(table.select(first.names))
        try:
            tables[name] = pa.concat_tables(pieces, promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(f"{files[0].parent}: files of different types: {error}") from error
        if len(tables[name]) == 0:
            raise DataError(f"{files[0]}: no rows")
    return tables


def read_table(path: Path) -> pa.Table:
    """One file. Raises DataError naming it."""
    try:
        if not path.exists():
            raise DataError("no such file or folder")
        if path.name.endswith((".csv", ".csv.gz")):
            table = _read_csv(path)
        elif path.name.endswith(".parquet"):
            table = _read_parquet(path)
        elif path.name.endswith(".npz"):
            table = _read_npz(path)
        else:
            raise DataError(f"expected a file that ends in {', '.join(SUFFIXES)}")
        twice = sorted({name for name in table.column_names if table.column_names.count(name) > 1})
        if twice:
            raise DataError(f"column twice: {', '.join(map(repr, twice))}")
    except DataError as error:
        raise DataError(f"{path}: {error}") from error
    except (
        pa.ArrowException, OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error
    ) as error:  # fmt: skip
        raise DataError(f"{path}: cannot be read: {error}") from error
    return table


def _read_parquet(path: Path) -> pa.Table:
    with pq.ParquetFile(path) as file:
        table = file.read()
    # Nothing else looks whether texts are UTF-8.
    table.validate(full=True)
    for index, field in enumerate(table.schema):
        if pa.types.is_dictionary(field.type):
            values = table.column(index).cast(field.type.value_type)
            table = table.set_column(index, field.name, values)
    return table


def _read_csv(path: Path) -> pa.Table:
    _check_utf8(path)
    ragged: list[str] = []

    def note(row: Any) -> str:
        # Its number counts from 1, with the header.
        ragged.append(
            f"row {row.number - 2}: expected {row.expected_columns} cells, "
            f"found {row.actual_columns}"
        )
        return "skip"

    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=_BLOCK)
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True, invalid_row_handler=note)
    with pyarrow.csv.open_csv(path, read_options=read, parse_options=parse) as reader:
        names = reader.schema.names
    twice = sorted({name for name in names if names.count(name) > 1})
    if twice:
        raise DataError(f"column twice: {', '.join(map(repr, twice))}")
    # In a file of one column a blank line is a missing cell.
    parse.ignore_empty_lines = len(names) > 1
    convert = pyarrow.csv.ConvertOptions(
        column_types=dict.fromkeys(names, pa.string()), strings_can_be_null=False
    )
    ragged.clear()
    table = pyarrow.csv.read_csv(
        path, read_options=read, parse_options=parse, convert_options=convert
    )
    if ragged:
        raise DataError(f"{ragged[0]} (such rows: {len(ragged)})")
    return table


def _check_utf8(path: Path) -> None:
    """Raise DataError naming the line where the text is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    lines = 1
    with pa.input_stream(str(path)) as stream:
        block = None
        while block != b"":
            block = stream.read(_BLOCK)
            try:
                lines += decoder.decode(block, final=block == b"").count("\n")
            except UnicodeDecodeError as error:
                line = lines + error.object[: error.start].count(b"\n")
                raise DataError(
                    f"line {line}: expected UTF-8 text, found the byte "
                    f"0x{error.object[error.start]:02x}; save the file as UTF-8"
                ) from error


def _read_npz(path: Path) -> pa.Table:
    """Arrays x, numbers [N, D], and y, [N]; columns, [D], may name x's columns."""
    if not zipfile.is_zipfile(path):
        raise DataError("expected an .npz file of arrays x and y, found something else")
    with np.load(path, allow_pickle=False) as arrays:
        absent = {"x", "y"} - set(arrays.files)
        if absent:
            raise DataError(f"expected arrays x and y, found {arrays.files}")
        x, y = arrays["x"], arrays["y"]
        names = arrays["columns"].tolist() if "columns" in arrays.files else None
    good = x.ndim == 2 and x.dtype.kind in "fiub" and y.dtype.kind in "fiubU"
    if not good or y.shape != (len(x),):
        raise DataError(
            "expected numbers x [N, D] and labels y [N], "
            f"found x {x.dtype} {list(x.shape)} and y {y.dtype} {list(y.shape)}"
        )
    names = names or [f"x{index}" for index in range(x.shape[1])]
    if len(names) != x.shape[1] or len({*names, "y"}) != len(names) + 1:
        raise DataError(
            f"columns: expected {x.shape[1]} different names other than 'y', found {names}"
        )
    columns = dict(zip(map(str, names), map(pa.array, x.T.copy()), strict=True))
    return pa.table(columns | {"y": pa.array(y)})


def _files(folder: Path) -> list[Path]:
    found = [
        file
        for file in folder.iterdir()
        if file.name.endswith(SUFFIXES) and not file.name.startswith(".")
    ]
    if not found:
        raise DataError(f"{folder}: expected files that end in {', '.join(SUFFIXES)}, found none")
    return found


def _by_part(folder: Path) -> dict[str, list[Path]]:
    parts: dict[str, list[Path]] = {}
    for file in sorted(_files(folder)):
        match = _PART.match(file.name)
        part = "train" if match is None else str(match.lastgroup)
        parts.setdefault(part, []).append(file)
    return parts


def _check_same(file: Path, found: pa.Schema, expected: pa.Schema) -> None:
    absent = sorted(set(expected.names) - set(found.names))
    extra = sorted(set(found.names) - set(expected.names))
    if absent or extra:
        raise DataError(
            f"{file}: other columns than the first file: missing {absent}, unknown {extra}"
        )
    for name in expected.names:
        theirs, ours = found.field(name).type, expected.field(name).type
        if len({_family(theirs), _family(ours)} - {"nothing"}) > 1:
            raise DataError(
                f"{file}: column {name!r}: expected {ours} as in the first file, found {theirs}"
            )


def _family(kind: pa.DataType) -> str:
    """What goes together in one column, whatever its width; a column of null goes with all."""
    types = pa.types
    if types.is_null(kind):
        return "nothing"
    if types.is_string(kind) or types.is_large_string(kind):
        return "texts"
    if types.is_integer(kind) or types.is_floating(kind) or types.is_decimal(kind):
        return "numbers"
    return "dates" if types.is_date(kind) or types.is_timestamp(kind) else str(kind)
