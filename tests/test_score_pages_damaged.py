"""Damaged pages of pixels: no row gets other pixels than were written, nor does memory run out."""

from __future__ import annotations

import io
import tracemalloc
from contextlib import closing
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.errors import DataError
from artifacts.predictor import Predictor
from serving.scoring.pages import Pages, Unlike
from serving.scoring.runs import numbers
from tests.paged import (
    MANY,
    WIDTH,
    WRITTEN,
    a_table,
    as_pixels,
    first_header,
    pages_of,
    values,
)
from tests.scored import rejected_of, score_file


@given(
    how=WRITTEN,
    kind=st.sampled_from(["binary", "list"]),
    seed=st.integers(0, 2**32 - 1),
    cut=st.booleans(),
)
@MANY
def test_damage_never_shows_other_pixels_than_pyarrow_would(
    tmp_path: Path, how: dict[str, Any], kind: str, seed: int, cut: bool
) -> None:
    pixels = values(60, 20)
    buffer = io.BytesIO()
    pq.write_table(a_table(pixels, kind=kind), buffer, **how)
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
        except (Unlike, DataError):
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
    assert [bytes(row) if kind == "binary" else row.tolist() for row in found] == read


@given(how=WRITTEN, kind=st.sampled_from(["binary", "list"]), data=st.data())
@MANY
def test_a_header_that_is_damaged_gives_no_row_the_pixels_of_another(
    tmp_path: Path, how: dict[str, Any], kind: str, data: Any
) -> None:
    pixels = values(60, 20)
    table = a_table(pixels, kind=kind).select(["pixels"])
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **{**how, "write_page_index": False})
    metadata = pq.read_metadata(buffer)
    damaged = bytearray(buffer.getvalue())
    start, length, _ = first_header(damaged, metadata)
    at = start + data.draw(st.integers(0, length - 1))
    damaged[at] = data.draw(st.integers(0, 255).filter(lambda byte: byte != damaged[at]))
    path = tmp_path / "a.parquet"
    path.write_bytes(damaged)
    with closing(pages_of(path)) as pages:
        try:
            found = as_pixels(pages.read(0, len(pixels)))
        except (Unlike, DataError):
            return
    assert (found == pixels).all()


@pytest.mark.parametrize("kind", [0x1, 0x5, 0x8])
def test_a_header_with_something_else_in_the_place_of_a_struct_is_left_to_pyarrow(
    tmp_path: Path, kind: int
) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(a_table(values(50, 50)), path, use_dictionary=False)
    data = bytearray(path.read_bytes())
    start, _, _ = first_header(data, pq.read_metadata(path))
    data[data.index(0x2C, start)] = 0x20 | kind
    path.write_bytes(data)
    with pytest.raises(Unlike), closing(pages_of(path)) as pages:
        pages.read(0, 50)


@pytest.mark.parametrize("version", ["1.0", "2.0"])
def test_a_page_that_is_no_page_of_data_moves_no_row(
    digits: Predictor, tmp_path: Path, version: str
) -> None:
    pixels = digits.golden.raw[np.arange(300) % len(digits.golden.raw)].reshape(300, WIDTH)
    path = tmp_path / "a.parquet"
    pq.write_table(
        a_table(pixels).select(["pixels"]), path, use_dictionary=False, compression="none",
        row_group_size=150, data_page_size=1000, write_batch_size=50, data_page_version=version,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    start, _, header = first_header(data, pq.read_metadata(path))
    assert data[start + 1] == 2 * header[1]
    # Of an index, which pyarrow passes: 250 rows are left, the second 50 in the place of the first.
    data[start + 1] = 2
    path.write_bytes(data)
    assert pq.read_table(path).num_rows == 250
    summary = score_file(digits, path, tmp_path / "out", workers=1)
    assert summary["rows_rejected"] == 300
    reason = rejected_of(tmp_path / "out")[0]["reason"]
    assert "column 'pixels', row group 0: damaged: expected 150 values" in reason


def test_rows_that_a_row_group_lacks_are_not_taken_from_the_next(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(
        a_table(values(28, 4)).select(["pixels"]), path, row_group_size=25, data_page_size=1,
        write_batch_size=10,
    )  # fmt: skip
    data = bytearray(path.read_bytes())
    chunk = pq.read_metadata(path).row_group(0).column(0)
    # A page of ten values says that it has five: an index is left over, which is no error.
    ten = data.index(bytes([0x2C, 0x15, 2 * 10]), chunk.data_page_offset)
    data[ten + 2] = 2 * 5
    path.write_bytes(data)
    with (
        pytest.raises(DataError, match="row group 0: damaged: expected 25 values.*found 5 fewer"),
        closing(pages_of(path)) as pages,
    ):
        pages.read(0, 28)


@pytest.mark.parametrize("codec", ["snappy", "zstd", "gzip"])
def test_pixels_that_are_missing_at_a_page_s_end_are_not_made_up(
    tmp_path: Path, codec: str
) -> None:
    pixels = values(100, 100)
    path = tmp_path / "a.parquet"
    pq.write_table(a_table(pixels, nullable=False), path, use_dictionary=False, compression=codec)
    data = bytearray(path.read_bytes())
    start, length, header = first_header(data, pq.read_metadata(path))
    assert header[2] == pixels.nbytes
    # Ten of them, and the header says how long they are: after two fields, a zigzag of two bytes.
    few = pa.compress(pixels[:10].tobytes(), codec=codec, asbytes=True)
    before, now = (bytes([2 * size & 0x7F | 0x80, size >> 6]) for size in (header[3], len(few)))
    assert data[start + 6 : start + 8] == before
    data[start + 6 : start + 8] = now
    data[start + length : start + length + len(few)] = few
    path.write_bytes(data)
    with pytest.raises(Unlike), closing(pages_of(path)) as pages:
        pages.read(0, 100)


def test_no_more_bits_are_unpacked_than_there_are_rows() -> None:
    # Groups without end, in a page of 4 MiB.
    endless = memoryview(bytes([0xFF, 0xFF, 0xFF, 0xFF, 0x0F]) + bytes(2**22))
    tracemalloc.start()
    assert numbers(endless, 1, 10).tolist() == [0] * 10
    assert tracemalloc.get_traced_memory()[1] < 2**16
    tracemalloc.stop()


def test_no_more_rows_of_a_dictionary_are_made_than_are_asked_for(tmp_path: Path) -> None:
    pixels = values(20_000, 2)
    path = tmp_path / "a.parquet"
    pq.write_table(a_table(pixels), path)
    with closing(pages_of(path)) as pages:
        tracemalloc.start()
        column = pages.read(9000, 9100)
        assert tracemalloc.get_traced_memory()[1] < pixels.nbytes
        tracemalloc.stop()
        assert (as_pixels(column) == pixels[9000:9100]).all()
