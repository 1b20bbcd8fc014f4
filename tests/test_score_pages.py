"""Pixels of a fixed size in Parquet: read where they lie, the same as pyarrow reads them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.inputs import ImageInput
from artifacts.predictor import Predictor
from serving.scoring.chunks import Block
from serving.scoring.columnar import joined_tables
from serving.scoring.open import open_reader
from serving.scoring.pages import Pages, Unlike
from serving.scoring.sources import find_sources
from serving.scoring.units import UnitSize
from tests.paged import (
    KINDS,
    MANY,
    WIDTH,
    WRITTEN,
    a_table,
    as_pixels,
    first_header,
    pages_of,
    values,
)
from tests.scored import parts_of, rejected_of, score_file


@given(
    how=WRITTEN, kind=st.sampled_from(sorted(KINDS)), width=st.sampled_from([WIDTH, 1, 9, 24]),
    rows=st.integers(1, 400), different=st.integers(1, 90), nullable=st.booleans(), data=st.data(),
)  # fmt: skip
@MANY
def test_pages_are_what_was_written_however_that_was(
    tmp_path: Path,
    how: dict[str, Any],
    kind: str,
    width: int,
    rows: int,
    different: int,
    nullable: bool,
    data: Any,
) -> None:
    pixels = values(rows, different, width)
    path = tmp_path / "a.parquet"
    pq.write_table(a_table(pixels, kind=kind, nullable=nullable), path, **how)
    with closing(pages_of(path, width)) as pages:
        for _ in range(3):
            first = data.draw(st.integers(0, rows - 1))
            stop = data.draw(st.integers(first + 1, rows))
            assert (as_pixels(pages.read(first, stop), width) == pixels[first:stop]).all()


@pytest.mark.parametrize("kind", ["binary", "list"])
def test_pages_before_those_that_are_wanted_are_not_decoded(tmp_path: Path, kind: str) -> None:
    pixels = values(5000, 5000)
    path = tmp_path / "a.parquet"
    small = {"data_page_size": 1000, "write_batch_size": 100}
    table = a_table(pixels, kind=kind)
    pq.write_table(table, path, use_dictionary=False, compression="zstd", **small)
    data = bytearray(path.read_bytes())
    start, length, _ = first_header(data, pq.read_metadata(path))
    # What a frame of Zstandard begins with.
    assert data[start + length : start + length + 4] == b"\x28\xb5\x2f\xfd"
    data[start + length] = 0
    path.write_bytes(data)
    with closing(pages_of(path)) as pages:
        assert (as_pixels(pages.read(4000, 5000)) == pixels[4000:]).all()
        with pytest.raises(Unlike):
            pages.read(0, 10)


@pytest.mark.parametrize(
    "table",
    [
        a_table(values(50, 50), nulls=(49,)),
        pa.table({"pixels": pa.array([b"1" * WIDTH], pa.binary())}),
        pa.table({"pixels": pa.array([b"1" * (WIDTH - 1)], pa.binary(WIDTH - 1))}),
        pa.table({"pixels": pa.array([[b"1" * WIDTH]], pa.list_(pa.binary(WIDTH)))}),
        a_table(values(50, 50), kind="list", nulls=(49,)),
        pa.table({"pixels": pa.array([[1] * WIDTH, [1, None] * 32], pa.list_(pa.uint8()))}),
        pa.table({"pixels": pa.array([[1] * WIDTH, []], pa.list_(pa.uint8()))}),
        pa.table({"pixels": pa.array([[1] * WIDTH, [1]], pa.list_(pa.uint8()))}),
        pa.table({"pixels": pa.array([[1] * (WIDTH + 1)] * WIDTH, pa.list_(pa.uint8()))}),
        pa.table({"pixels": pa.array([[1] * 32, [1] * 96], pa.list_(pa.uint8()))}),
        pa.table({"pixels": pa.array([[256] * WIDTH], pa.list_(pa.int32()))}),
        pa.table({"pixels": pa.array([[1] * WIDTH], pa.list_(pa.int64()))}),
        pa.table({"pixels": pa.array([[[1] * WIDTH]], pa.list_(pa.list_(pa.uint8())))}),
        pa.table({"others": pa.array([b"1" * WIDTH], pa.binary(WIDTH))}),
        a_table(values(50, 50), nulls=tuple(range(50))),
    ],
    ids=[
        "null", "not-fixed", "narrower", "nested", "null list", "null in a list", "no pixels",
        "fewer pixels", "more pixels", "another length each", "too large", "wide", "lists of lists",
        "absent", "all null",
    ],
)  # fmt: skip
@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_what_is_unlike_them_is_left_to_pyarrow(
    tmp_path: Path, table: pa.Table, version: str
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, data_page_version=version)
    with pytest.raises(Unlike), closing(pages_of(path)) as pages:
        pages.read(0, len(table))


def blocks_of(path: Path, spec: ImageInput) -> list[Block]:
    (source,) = find_sources([str(path)], pictures=True)
    with closing(open_reader(source, spec, UnitSize.of(10))) as reader:
        columns = ["id", "pixels", "note"]
        return [block for unit in reader.units() for block in reader.blocks(unit, columns)]


@pytest.mark.parametrize("kind", ["binary", "list"])
@pytest.mark.parametrize("nulls", [(), (0,), (150,), (299,)])
def test_rows_keep_their_other_columns_and_none_comes_twice(
    digits: Predictor,
    tmp_path: Path,
    nulls: tuple[int, ...],
    kind: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    paged = 0

    def read(pages: Pages, first: int, stop: int, read: Any = Pages.read) -> pa.Array:
        nonlocal paged
        column = read(pages, first, stop)
        paged = stop
        return column

    monkeypatch.setattr(Pages, "read", read)
    monkeypatch.setattr("serving.scoring.columnar.chunk_rows", lambda spec: 40)
    pixels = digits.golden.raw[np.arange(300) % len(digits.golden.raw)].reshape(300, WIDTH)
    table = a_table(pixels, kind=kind, nulls=nulls)
    path = tmp_path / "a.parquet"
    small = {"row_group_size": 70, "data_page_size": 1000, "write_batch_size": 10}
    pq.write_table(table, path, use_dictionary=False, **small)
    assert isinstance(digits.manifest.input, ImageInput)
    blocks = blocks_of(path, digits.manifest.input)
    assert paged == (nulls[0] // 40 * 40 if nulls else 300)
    assert len(blocks) >= 300 // 40
    assert np.concatenate([block.rows for block in blocks]).tolist() == list(range(300))
    others = ["id", "note"]
    together = pa.concat_tables(
        [block.values.select(others) for block in blocks]  # type: ignore[union-attr]
    )
    assert together.equals(table.select(others))

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
