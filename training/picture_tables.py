"""Labelled pictures in Parquet files, as Hugging Face writes them.

https://huggingface.co/docs/hub/datasets-image#parquet-format
"""

from __future__ import annotations

import io
import os
import shutil
import tempfile
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from artifacts.arrow import class_names
from artifacts.errors import DataError
from training.picture_arrays import index_labels, row_names
from training.picture_files import PARTS, ListedPart, Names

IMAGE_COLUMNS = ("image", "img")
LABEL_COLUMN = "label"
_PART_PREFIXES = {"train": "train", "val": "validation", "test": "test"}
# Rows in memory at a time: photographs of some MB each must fit.
_BATCH_ROWS = 256
_READ_BYTES = 2**20


class SpoolFolder:
    """A temporary folder, removed with the last object that refers to it or with the process.

    Not by a worker process, which has a copy of the object, or only the path.
    """

    def __init__(self) -> None:
        self.path = Path(tempfile.mkdtemp(prefix="parityline-"))
        weakref.finalize(self, _remove_spool, self.path, os.getpid())


@dataclass(frozen=True)
class ArrowRows:
    """Pictures in an uncompressed Arrow file, which is mapped, not read.

    spool: the folder that holds the file; None in a process that this was sent to.
    """

    file: Path
    names: Names
    spool: SpoolFolder | None

    def open(self, row: int) -> BinaryIO:
        """The bytes of a row as a file, for its header."""
        return io.BytesIO(self.read(row))

    def read(self, row: int) -> bytes:
        """The bytes of a row's picture."""
        data: bytes | None = self._column[int(row)].as_py()
        if data is None:
            raise DataError("the value is missing")
        if not data:
            raise DataError("the value is empty")
        return data

    @cached_property
    def _column(self) -> pa.ChunkedArray:
        try:
            return pa.ipc.open_file(pa.memory_map(str(self.file))).read_all().column(0)
        except (pa.ArrowException, OSError) as error:
            raise DataError(f"the temporary copy {self.file} cannot be read: {error}") from error

    def __getstate__(self) -> dict[str, Any]:
        return {"file": self.file, "names": self.names, "spool": None}


def list_parquet(files: list[Path]) -> tuple[tuple[str, ...], dict[str, ListedPart]]:
    """Class names, and the pictures of each part, copied to a mapped file as they are encoded.

    One file is all for training; of more, the start of their names says the part.
    Raises DataError for columns, types or labels that are not as expected.
    """
    spool = SpoolFolder()
    rows: dict[str, ArrowRows] = {}
    values: dict[str, np.ndarray] = {}
    class_names: dict[tuple[str, ...] | None, str] = {}
    for part, sources in _by_part(files).items():
        names, labels = [], []
        with _writer(spool.path / f"{part}.arrow") as writer:
            for source in sources:
                image, found = _read_columns(source)
                class_names.setdefault(found, source.name)
                start = 0
                for encoded, labels_here in _read_batches(source, image):
                    writer.write(pa.record_batch([encoded], _mapped_schema()))
                    names.append(row_names(source.name, start, start + len(encoded)))
                    labels.append(labels_here)
                    start += len(encoded)
        if not labels:
            raise DataError(f"{sources[0].name}: expected rows, found none")
        if len({array.dtype.kind for array in labels}) > 1:
            raise DataError(f"{part}: expected labels of one type in all files, found several")
        values[part] = np.concatenate(labels)
        target = spool.path / f"{part}.arrow"
        rows[part] = ArrowRows(target, Names(pa.concat_arrays(names)), spool)
    if len(class_names) > 1:
        first, other = list(class_names.values())[:2]
        raise DataError(f"expected the same class names in all files, {first} and {other} differ")
    given = next(iter(class_names))
    classes, indices = index_labels(
        values, given, {part: part_rows.names for part, part_rows in rows.items()}
    )
    return classes, {part: ListedPart(rows[part], indices[part]) for part in rows}


def _by_part(files: list[Path]) -> dict[str, list[Path]]:
    def part_of(file: Path) -> str | None:
        starts = _PART_PREFIXES.items()
        return next((part for start, part in starts if file.name.lower().startswith(start)), None)

    found = {file: part_of(file) for file in files}
    if len(files) == 1 or not any(found.values()):
        return {"train": files}
    for file, part in found.items():
        if part is None:
            raise DataError(
                f"{file.name}: expected a name that starts with train, val or test, "
                "as the other files' do"
            )
    parts = {part: [file for file in files if found[file] == part] for part in PARTS}
    if not parts["train"]:
        raise DataError(f"expected a file train*.parquet, found {[file.name for file in files]}")
    return {part: sources for part, sources in parts.items() if sources}


def _read_columns(source: Path) -> tuple[str, tuple[str, ...] | None]:
    """The column of pictures, and the class names where the file says them."""
    try:
        schema = pq.read_schema(source)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source.name}: cannot be read: {error}") from error
    image = next((name for name in IMAGE_COLUMNS if schema.names.count(name) == 1), None)
    if image is None or schema.names.count(LABEL_COLUMN) != 1:
        raise DataError(
            f"{source.name}: expected a column {' or '.join(map(repr, IMAGE_COLUMNS))} and a "
            f"column {LABEL_COLUMN!r}, found {schema.names}"
        )
    kind = schema.field(image).type
    if pa.types.is_struct(kind) and kind.get_field_index("bytes") >= 0:
        kind = kind.field("bytes").type
    if not (pa.types.is_binary(kind) or pa.types.is_large_binary(kind)):
        raise DataError(
            f"{source.name}: column {image!r}: expected encoded pictures (binary, or a struct "
            f"with bytes), found {schema.field(image).type}"
        )
    try:
        return image, class_names(schema, LABEL_COLUMN)
    except DataError as error:
        raise DataError(f"{source.name}: {error}") from error


def _read_batches(source: Path, image: str) -> Iterator[tuple[pa.Array, np.ndarray]]:
    """Pictures as large_binary [n], and their labels, integers or strings [n]."""
    start = 0
    try:
        with pq.ParquetFile(source, buffer_size=_READ_BYTES) as file:
            for batch in file.iter_batches(_BATCH_ROWS, columns=[image, LABEL_COLUMN]):
                labels = _label_values(batch.column(LABEL_COLUMN), source.name, start)
                encoded = batch.column(image)
                if pa.types.is_struct(encoded.type):
                    encoded = pc.struct_field(encoded, "bytes")
                yield encoded.cast(pa.large_binary()), labels
                start += len(batch)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"{source.name}: cannot be read: {error}") from error


def _label_values(column: pa.Array, source: str, start: int) -> np.ndarray:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    kind = column.type
    text = pa.types.is_string(kind) or pa.types.is_large_string(kind)
    if not (text or pa.types.is_integer(kind)):
        raise DataError(
            f"{source}: column {LABEL_COLUMN!r}: expected integers or strings, found {kind}"
        )
    if column.null_count:
        row = start + int(pc.index(column.is_null(), True).as_py())
        raise DataError(f"{source} row {row}: label: the value is missing")
    if text:
        return np.array(column.to_pylist(), dtype=str)
    return np.asarray(column.cast(pa.int64()))


def _mapped_schema() -> pa.Schema:
    """Of the mapped file: 64-bit offsets, so that no batch is too large."""
    return pa.schema([("bytes", pa.large_binary())])


@contextmanager
def _writer(target: Path) -> Iterator[pa.RecordBatchFileWriter]:
    try:
        with (
            pa.OSFile(str(target), "wb") as sink,
            pa.ipc.new_file(sink, _mapped_schema()) as writer,
        ):
            yield writer
    except (pa.ArrowException, OSError) as error:
        raise DataError(
            f"the temporary folder {target.parent} cannot be written: {error} "
            "(TMPDIR names another place)"
        ) from error


def _remove_spool(folder: Path, owner: int) -> None:
    if os.getpid() == owner:
        shutil.rmtree(folder, ignore_errors=True)
