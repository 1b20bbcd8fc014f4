"""Pixels of a fixed size in Parquet: read where they lie, the same as pyarrow reads them."""

from __future__ import annotations

import io
import tracemalloc
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

from artifacts.errors import DataError
from artifacts.inputs import ImageInput
from artifacts.predictor import Predictor
from serving.scoring.chunks import Block
from serving.scoring.columnar import joined_tables
from serving.scoring.open import open_reader
from serving.scoring.pages import Pages, Unlike
from serving.scoring.runs import numbers
from serving.scoring.sources import find_sources
from serving.scoring.thrift import read_struct
from serving.scoring.units import UnitSize
from tests.scored import parts_of, rejected_of, score_file

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
