"""Pixels of a fixed size in Parquet: read where they lie, the same as pyarrow reads them."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.inputs import ImageInput
from artifacts.predictor import Predictor
from serving.scoring.chunks import Block
from serving.scoring.columnar import joined_tables
from serving.scoring.open import open_reader
from serving.scoring.pages import Pages, Unlike
from serving.scoring.sources import find_sources
from serving.scoring.units import UnitSize
from tests.scored import parts_of, rejected_of, score_file

WIDTH = 64
WRITTEN = st.fixed_dictionaries(
    {
        "compression": st.sampled_from(["none", "snappy", "zstd", "gzip"]),
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


def values(rows: int, different: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (different, WIDTH), np.uint8)[rng.integers(0, different, rows)]


def a_table(pixels: np.ndarray, *, nulls: tuple[int, ...] = (), nullable: bool = True) -> pa.Table:
    cells = [None if row in nulls else bytes(cell) for row, cell in enumerate(pixels)]
    schema = pa.schema(
        [
            pa.field("id", pa.int64()),
            pa.field("pixels", pa.binary(WIDTH), nullable=nullable),
            pa.field("note", pa.string()),
        ]
    )
    notes = [f"note {row}" for row in range(len(cells))]
    columns = [pa.array(range(len(cells))), pa.array(cells, pa.binary(WIDTH)), pa.array(notes)]
    return pa.Table.from_arrays(columns, schema=schema)


def pages_of(path: Path) -> Pages:
    return Pages(str(path), pq.read_metadata(path), "pixels", WIDTH)


def as_pixels(column: pa.ChunkedArray) -> np.ndarray:
    return np.frombuffer(b"".join(column.to_pylist()), np.uint8).reshape(-1, WIDTH)


@given(
    how=WRITTEN, rows=st.integers(1, 400), different=st.integers(1, 90), nullable=st.booleans(),
    data=st.data(),
)  # fmt: skip
@MANY
def test_pages_are_what_pyarrow_reads_however_they_were_written(
    tmp_path: Path, how: dict[str, Any], rows: int, different: int, nullable: bool, data: Any
) -> None:
    pixels = values(rows, different)
    path = tmp_path / "a.parquet"
    pq.write_table(a_table(pixels, nullable=nullable), path, **how)
    with closing(pages_of(path)) as pages:
        for _ in range(3):
            first = data.draw(st.integers(0, rows - 1))
            stop = data.draw(st.integers(first + 1, rows))
            assert (as_pixels(pages.read(first, stop)) == pixels[first:stop]).all()


def test_plain_pages_are_used_where_they_lie(tmp_path: Path) -> None:
    pixels = values(5000, 5000)
    path = tmp_path / "a.parquet"
    pq.write_table(a_table(pixels), path, compression="none", use_dictionary=False)
    before = pa.total_allocated_bytes()
    with closing(pages_of(path)) as pages:
        column = pages.read(0, len(pixels))
        assert pa.total_allocated_bytes() == before
        assert (as_pixels(column) == pixels).all()


@pytest.mark.parametrize(
    "table",
    [
        a_table(values(50, 50), nulls=(49,)),
        pa.table({"pixels": pa.array([b"1" * WIDTH], pa.binary())}),
        pa.table({"pixels": pa.array([b"1" * (WIDTH - 1)], pa.binary(WIDTH - 1))}),
        pa.table({"pixels": pa.array([[b"1" * WIDTH]], pa.list_(pa.binary(WIDTH)))}),
        pa.table({"pixels": pa.array([[1] * WIDTH], pa.list_(pa.uint8()))}),
        pa.table({"others": pa.array([b"1" * WIDTH], pa.binary(WIDTH))}),
    ],
    ids=["null", "not-fixed", "narrower", "nested", "lists", "absent"],
)
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_is_unlike_them_is_left_to_pyarrow(
    tmp_path: Path, table: pa.Table, version: str
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, data_page_version=version)
    with pytest.raises(Unlike), closing(pages_of(path)) as pages:
        pages.read(0, len(table))


@given(how=WRITTEN, seed=st.integers(0, 2**32 - 1), cut=st.booleans())
@MANY
def test_damage_never_shows_other_pixels_than_pyarrow_would(
    tmp_path: Path, how: dict[str, Any], seed: int, cut: bool
) -> None:
    pixels = values(60, 20)
    buffer = io.BytesIO()
    pq.write_table(a_table(pixels), buffer, **how)
    metadata = pq.read_metadata(buffer)
    data = bytearray(buffer.getvalue())
    rng = np.random.default_rng(seed)
    if cut:
        del data[int(rng.integers(4, len(data))) :]
    else:
        for at in rng.integers(4, len(data) - metadata.serialized_size - 8, 3):
            data[at] = rng.integers(0, 256)
    path = tmp_path / "a.parquet"
    path.write_bytes(data)
    # The footer as it was: who damages that does not get here.
    with closing(Pages(str(path), metadata, "pixels", WIDTH)) as pages:
        try:
            found = as_pixels(pages.read(0, len(pixels)))
        except Unlike:
            return
    assert len(found) == len(pixels)
    if cut:
        # Of what is there no byte has changed.
        assert (found == pixels).all()
        return
    try:
        read = pq.read_table(path, columns=["pixels"], use_threads=False)["pixels"].to_pylist()
    except (OSError, pa.ArrowException):
        return
    assert [bytes(row) for row in found] == read


def blocks_of(path: Path, spec: ImageInput) -> list[Block]:
    (source,) = find_sources([str(path)], pictures=True)
    with closing(open_reader(source, spec, UnitSize.of(10))) as reader:
        columns = ["id", "pixels", "note"]
        return [block for unit in reader.units() for block in reader.blocks(unit, columns)]


@pytest.mark.parametrize("nulls", [(), (0,), (150,), (299,)])
def test_rows_keep_their_other_columns_and_none_comes_twice(
    digits: Predictor, tmp_path: Path, nulls: tuple[int, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    paged = 0

    def read(pages: Pages, first: int, stop: int, read: Any = Pages.read) -> pa.ChunkedArray:
        nonlocal paged
        column = read(pages, first, stop)
        paged = stop
        return column

    monkeypatch.setattr(Pages, "read", read)
    monkeypatch.setattr("serving.scoring.columnar.chunk_rows", lambda spec: 40)
    pixels = digits.golden.raw[np.arange(300) % len(digits.golden.raw)].reshape(300, WIDTH)
    table = a_table(pixels, nulls=nulls)
    path = tmp_path / "a.parquet"
    small = {"row_group_size": 70, "data_page_size": 1000, "write_batch_size": 10}
    pq.write_table(table, path, use_dictionary=False, **small)
    assert isinstance(digits.manifest.input, ImageInput)
    blocks = blocks_of(path, digits.manifest.input)
    assert paged == (nulls[0] // 40 * 40 if nulls else 300)
    assert len(blocks) >= 300 // 40
    assert np.concatenate([block.rows for block in blocks]).tolist() == list(range(300))
    together = pa.concat_tables(
        [block.values.select(table.column_names) for block in blocks]  # type: ignore[union-attr]
    )
    assert together.to_pylist() == table.to_pylist()

    summary = score_file(digits, path, tmp_path / "out", workers=1)
    assert summary["rows_scored"] == 300 - len(nulls)
    assert [row["row"] for row in rejected_of(tmp_path / "out")] == list(nulls)
    kept = [row for row in range(300) if row not in nulls]
    assert parts_of(tmp_path / "out")["note"].to_pylist() == [f"note {row}" for row in kept]


def test_pieces_are_joined_and_what_was_read_before_an_error_comes_before_it() -> None:
    def pieces() -> Iterator[pa.Table]:
        yield from (pa.table({"a": [row]}) for row in range(7))
        raise OSError("damaged")

    joined = joined_tables(pieces(), 3)
    assert [next(joined)["a"].to_pylist() for _ in range(3)] == [[0, 1, 2], [3, 4, 5], [6]]
    with pytest.raises(OSError, match="damaged"):
        next(joined)
