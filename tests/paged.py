"""Parquet files of pixels, however they are written, for the tests that read them page by page."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st

from serving.scoring.pages import Pages
from serving.scoring.thrift import read_struct

WIDTH = 64
# How Arrow holds the pixels of a row.
KINDS = {
    "binary": lambda width: pa.binary(width),
    "list": lambda width: pa.list_(pa.uint8()),
    "large list": lambda width: pa.large_list(pa.uint8()),
    "list of a size": lambda width: pa.list_(pa.uint8(), width),
    "list without nulls": lambda width: pa.list_(pa.field("item", pa.uint8(), nullable=False)),
}
WRITTEN = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "zstd"]),
        "use_dictionary": st.booleans(),
        "row_group_size": st.sampled_from([7, 100, 1000]),
        "data_page_size": st.sampled_from([1, 1000, 2**20]),
        "write_batch_size": st.sampled_from([3, 50, 1024]),
        "data_page_version": st.sampled_from(["1.0", "2.0"]),
        "write_page_index": st.booleans(),
        "dictionary_pagesize_limit": st.sampled_from([500, 2**20]),
    }
)
MANY = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def values(rows: int, different: int, width: int = WIDTH) -> np.ndarray:
    """Rows of which so many differ; half of their pixels are 0, in a row."""
    rng = np.random.default_rng(0)
    some = rng.integers(0, 256, (different, width), np.uint8)
    some[:, : width // 2] = 0
    return some[rng.integers(0, different, rows)]


def a_table(
    pixels: np.ndarray, *, kind: str = "binary", nulls: tuple[int, ...] = (), nullable: bool = True
) -> pa.Table:
    of = KINDS[kind](pixels.shape[1])
    cells = [bytes(cell) if kind == "binary" else cell.tolist() for cell in pixels]
    held = pa.array([None if row in nulls else cell for row, cell in enumerate(cells)], of)
    schema = pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("pixels", of, nullable=nullable),
            pa.field("note", pa.string()),
        ]
    )
    notes = [f"note {row}" for row in range(len(cells))]
    columns = [pa.array(range(len(cells))), held, pa.array(notes)]
    return pa.Table.from_arrays(columns, schema=schema)


def pages_of(path: Path, width: int = WIDTH) -> Pages:
    return Pages(str(path), pq.read_metadata(path), "pixels", width)


def as_pixels(column: pa.Array, width: int = WIDTH) -> np.ndarray:
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, width)


def first_header(data: bytes, metadata: pq.FileMetaData) -> tuple[int, int, dict[int, Any]]:
    """Where the first page of pixels has its header, how long that is, and what it says."""
    chunk = next(
        column
        for column in map(metadata.row_group(0).column, range(metadata.num_columns))
        if column.path_in_schema.startswith("pixels")
    )
    at = chunk.dictionary_page_offset if chunk.has_dictionary_page else chunk.data_page_offset
    header, length = read_struct(data[at:])
    return at, length, header
