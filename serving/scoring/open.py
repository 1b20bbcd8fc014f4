"""A reader for each source."""

from __future__ import annotations

import zipfile
from typing import Any

import pyarrow as pa

from artifacts.errors import DataError
from artifacts.inputs import ImageInput, TableInput
from serving.scoring.arrays import ArrayReader
from serving.scoring.columnar import ArrowReader, ParquetReader
from serving.scoring.pictures import FilesReader, TarReader
from serving.scoring.sources import Source
from serving.scoring.text import CsvReader, JsonLinesReader
from serving.scoring.units import Reader, UnitSize

_READERS: dict[str, Any] = {
    "parquet": ParquetReader,
    "arrow": ArrowReader,
    "csv": CsvReader,
    "jsonl": JsonLinesReader,
    "npy": ArrayReader,
    "npz": ArrayReader,
    "pictures": FilesReader,
    "list": FilesReader,
    "tar": TarReader,
}


def open_reader(source: Source, spec: ImageInput | TableInput, size: UnitSize) -> Reader:
    """Raises DataError for a file that cannot be read, or not for this model."""
    if source.format == "csv" and isinstance(spec, ImageInput):
        raise DataError("a model of pictures takes Parquet, arrays or pictures, not CSV")
    try:
        reader: Reader = _READERS[source.format](source, spec, size)
    except (pa.ArrowException, OSError, UnicodeDecodeError, zipfile.BadZipFile) as error:
        raise DataError(f"cannot be read: {error}") from error
    return reader
