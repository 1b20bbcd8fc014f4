"""Offline jobs in tests: one call, and what it wrote."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from artifacts.inputs import ImageInput, TableInput
from artifacts.predictor import Predictor
from serving.scoring.chunks import Chunk, encode, wanted_columns, with_partitions
from serving.scoring.job import Options, score
from serving.scoring.open import open_reader
from serving.scoring.sources import find_sources
from serving.scoring.units import UnitSize


def score_file(predictor: Predictor, path: Path, out: Path, **options: Any) -> dict[str, Any]:
    """The summary of a job of one input."""
    return score(predictor, [str(path)], out, Options(**options))


def parts_of(out: Path) -> pa.Table:
    """All rows that were scored, in order."""
    return pa.concat_tables([pq.read_table(path) for path in sorted(out.glob("part-*.parquet"))])


def rejected_of(out: Path) -> list[dict[str, Any]]:
    """All rows that were not."""
    return pq.read_table(out / "rejected.parquet").to_pylist()


def probabilities_of(table: pa.Table, predictor: Predictor) -> np.ndarray:
    """float32 [N, K]."""
    columns = [table[f"probability_{label}"].to_numpy() for label in predictor.manifest.labels]
    assert all(column.dtype == np.float32 for column in columns)
    return np.stack(columns, axis=1)


def read_chunks(path: Path, spec: ImageInput | TableInput) -> Iterator[Chunk]:
    """A file's rows as raw input, as every job reads them."""
    (source,) = find_sources([str(path)], pictures=isinstance(spec, ImageInput))
    reader = open_reader(source, spec, UnitSize.of(2))
    columns = wanted_columns(reader.schema, spec, ())
    for unit in reader.units():
        blocks = (
            [block for _, found in reader.stream(columns) for block in found]
            if unit.rows is None
            else reader.blocks(unit, columns)
        )
        for block in blocks:
            yield encode(with_partitions(block, source), spec, passed=pa.schema([]))
    reader.close()


def table_of(predictor: Predictor, rows: np.ndarray) -> pa.Table:
    """Rows of raw input under their columns' names, after an id."""
    names = [column.name for column in predictor.manifest.input.columns]
    return pa.table({"id": np.arange(len(rows)), **dict(zip(names, rows.T, strict=True))})
