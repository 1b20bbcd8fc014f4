"""Pieces of CSV and JSON lines: the same rows, by the same numbers, as Arrow reads in the whole."""

from __future__ import annotations

import random
from collections.abc import Iterator
from functools import partial
from unittest.mock import patch

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from artifacts.errors import DataError
from serving.scoring.cutting import (
    Piece,
    cut_csv,
    cut_lines,
    parse_csv_piece,
    read_header,
    skip_bom,
    split_lines,
    with_bytes,
)

BOM = "\ufeff"
BITS = [
    '"', '""', ",", ",,", "\n", "\r\n", "\r", "\n\n", "\r\n\r\n", " ", "x", "é", BOM, "\0", "\f",
    '5" pipe', '"a,b"', '"a\nb"', '"say ""x"""', ',"', '",', '"\n', '\n"', "1,2,3\n", '"y"z,',
]  # fmt: skip
BODIES = st.lists(st.sampled_from(BITS), max_size=40).map("".join)
# Names, and how many there are.
HEADERS = st.sampled_from([("a", 1), ("a,b", 2), ('"a\r\nb","c""d",e', 3), ('a",b', 2), ('""', 1)])
BREAKS = st.sampled_from(["\n", "\r\n", "\r"])
BLANKS = st.lists(BREAKS, max_size=2).map("".join)
SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=5)


def in_blocks(text: bytes, sizes: list[int]) -> Iterator[bytes]:
    """The text in blocks of these sizes, over and over, an empty one before each."""
    start = turn = 0
    while start < len(text):
        size = sizes[turn % len(sizes)]
        yield b""
        yield text[start : start + size]
        start, turn = start + size, turn + 1


def whole(text: bytes, columns: int) -> tuple[pa.Table, list[int], list[tuple[int, str]]]:
    """What Arrow makes of a text with a header in one go."""
    ragged = []

    def skip(row: pyarrow.csv.InvalidRow) -> str:
        reason = f"expected {row.expected_columns} cells, found {row.actual_columns}"
        ragged.append((row.number - 2, reason))
        return "skip"

    read = pyarrow.csv.ReadOptions(use_threads=False, block_size=2**27)
    parse = pyarrow.csv.ParseOptions(
        newlines_in_values=True, ignore_empty_lines=columns > 1, invalid_row_handler=skip
    )
    convert = pyarrow.csv.ConvertOptions(default_column_type=pa.string())
    with pyarrow.csv.open_csv(pa.BufferReader(text), read, parse, convert) as reader:
        table = reader.read_all()
    numbers = set(range(len(table) + len(ragged))) - {row for row, _ in ragged}
    return table, sorted(numbers), ragged


def pieces_of(
    text: bytes, target_bytes: int, sizes: list[int]
) -> tuple[list[str], int, list[tuple[Piece, bytes]]]:
    names, offset, rest = read_header(in_blocks(text, sizes))
    cut = partial(cut_csv, target_bytes=target_bytes, columns=len(names), offset=offset)
    return names, offset, list(with_bytes(rest, cut))


def parsed(
    names: list[str], pieces: list[tuple[Piece, bytes]]
) -> tuple[pa.Table, list[int], list[tuple[int, str]]]:
    tables, rows, ragged = [], [], []
    for piece, data in pieces:
        table, numbers, reasons = parse_csv_piece(data, names, piece)
        assert numbers.dtype == np.int64
        tables.append(table)
        rows.extend(numbers.tolist())
        ragged.extend(reasons)
    nothing = pa.schema([(name, pa.string()) for name in names]).empty_table()
    return pa.concat_tables([nothing, *tables]), rows, ragged


def assert_gapless(pieces: list[tuple[Piece, bytes]], text: bytes, offset: int) -> None:
    """The pieces are the text from the offset on, and their rows follow each other."""
    rows = 0
    for piece, data in pieces:
        assert (piece.offset, piece.length, piece.first_row) == (offset, len(data), rows)
        assert data == text[offset : offset + len(data)]
        offset, rows = offset + piece.length, rows + piece.rows
    assert offset == len(text)


@settings(deadline=None)
@given(
    bom=st.sampled_from(["", BOM]),
    blank=BLANKS,
    header=HEADERS,
    body=BODIES,
    target_bytes=st.integers(1, 60),
    sizes=SIZES,
    window=st.integers(1, 40),
)
@example("", "", ("a,b", 2), '1,"x\n2,y\n', 1, [1], 9)
@example("", "", ("a,b", 2), '1,""x"\n2,"y""z\n', 1, [1], 9)
@example("", "", ("a,b", 2), '1,"a""\n2"\n', 1, [1], 9)
@example("", "", ("a,b", 2), 'x"",1\n2,3\n', 1, [30], 30)
@example("", "", ("a", 1), "\n\r\n\r", 1, [1], 9)
@example("", "", ("a,b", 2), f'{BOM}1,2\n{BOM}"3,4"\n{BOM}', 1, [30], 30)
def test_pieces_parsed_one_by_one_are_what_arrow_reads_in_the_whole(
    bom: str, blank: str, header: tuple[str, int], body: str, target_bytes: int, sizes: list[int],
    window: int,
) -> None:  # fmt: skip
    first, columns = header
    # Where blank lines are rows, Arrow would take one in front of the header for the header.
    truth = bom + (blank if columns > 1 else "") + first + "\n" + body
    text = (bom + blank + first + "\n" + body).encode()
    table, rows, ragged = whole(truth.encode(), columns)
    with patch("serving.scoring.records._WINDOW_BYTES", window):
        names, offset, pieces = pieces_of(text, target_bytes, sizes)
    assert offset == len((bom + blank + first + "\n").encode())
    assert_gapless(pieces, text, offset)
    found, found_rows, found_ragged = parsed(names, pieces)
    assert names == table.schema.names and len(names) == columns
    assert found.to_pydict() == table.to_pydict()
    assert found.schema == table.schema
    assert (found_rows, found_ragged) == (rows, ragged)


@settings(deadline=None)
@given(body=BODIES, target_bytes=st.integers(1, 60), sizes=SIZES, columns=st.integers(1, 2))
def test_pieces_do_not_depend_on_the_blocks_that_are_read(
    body: str, target_bytes: int, sizes: list[int], columns: int
) -> None:
    text = body.encode()
    for cut in (partial(cut_csv, columns=columns), cut_lines):
        pieces = list(cut([text], target_bytes, offset=0))
        assert list(cut(in_blocks(text, sizes), target_bytes, offset=0)) == pieces
        # Each ends with the first record that brings it to the size that was asked for.
        ends = [piece.offset + piece.length for piece in cut([text], 1, offset=0)]
        for piece in pieces:
            enough = [end for end in ends if end - piece.offset >= target_bytes]
            assert piece.offset + piece.length == (enough or ends[-1:])[0]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("quotes", ["none", "regular", "wild"])
def test_a_text_of_many_windows_is_cut_as_arrow_reads_it(end: str, quotes: str) -> None:
    """Rows of three cells, a few of other lengths, blank lines."""
    draw = random.Random(0)
    cells = {
        "none": ["", "1.5", "some text", "é"],
        "regular": ["", "1.5", '"some, text"', f'"two{end}{end}lines"', '"say ""x"""', '""","""'],
        "wild": ["", '5" pipe', 'a"', '"b"c', f'"two{end}lines"x"y', 'a""b', '""', '"",'],
    }[quotes]
    lines = []
    for _ in range(120_000):
        length = 3 if draw.random() > 0.01 else draw.randrange(6)
        lines.append(",".join(draw.choices(cells, k=length)))
    text = end.join(["a,b,c", *lines]).encode()
    table, rows, ragged = whole(text, 3)
    assert len(rows) > 50_000 and len(ragged) > 100
    for target_bytes, least in ((100_000, 10), (1_500_000, 2)):
        names, offset, pieces = pieces_of(text, target_bytes, [700_001])
        assert len(pieces) >= least
        assert_gapless(pieces, text, offset)
        found, found_rows, found_ragged = parsed(names, pieces)
        assert (found_rows, found_ragged) == (rows, ragged)
        assert found.equals(table)


@settings(deadline=None)
@given(
    bom=st.sampled_from(["", BOM]),
    lines=st.lists(st.sampled_from(["{}", ' {"a": 1} ', "", " ", "\t\r", "\r", "\f", "é", '"'])),
    last=st.sampled_from(["", "\n"]),
    target_bytes=st.integers(1, 40),
    sizes=SIZES,
)  # fmt: skip
def test_json_lines_are_numbered_without_blank_ones(
    bom: str, lines: list[str], last: str, target_bytes: int, sizes: list[int]
) -> None:
    text = (bom + "\n".join(lines) + last).encode()
    offset, rest = skip_bom(in_blocks(text, sizes))
    pieces = list(with_bytes(rest, partial(cut_lines, target_bytes=target_bytes, offset=offset)))
    assert_gapless(pieces, text, len(bom.encode()))
    found = [line for piece, data in pieces for line in split_lines(data, piece)]
    assert found == [line.encode() for line in lines if line.strip(" \t\r")]


def test_only_wanted_columns_are_parsed() -> None:
    names, data = ["a", "b", "c"], b'1,\xff,"x,y"\n2\n3,,z\n'
    piece = Piece(offset=6, length=len(data), first_row=40, rows=3)
    table, rows, ragged = parse_csv_piece(data, names, piece, include_columns=["c", "a"])
    assert table.to_pydict() == {"c": ["x,y", "z"], "a": ["1", "3"]}
    assert rows.tolist() == [40, 42]
    assert ragged == [(41, "expected 3 cells, found 1")]


def test_a_piece_that_cannot_be_parsed_says_where() -> None:
    names, piece = ["a", "b"], Piece(offset=100, length=12, first_row=7, rows=2)
    with pytest.raises(DataError, match="rows 7 to 8: expected UTF-8, found 0xff at byte 106$"):
        parse_csv_piece(b"1,2\n3,\xff\n", names, piece)
    with pytest.raises(DataError, match="rows 7 to 8: expected 2 rows, as counted, found 3$"):
        parse_csv_piece(b"1,2\n3\n5,6\n", names, piece)
    with pytest.raises(DataError, match="rows 7 to 8: expected 2 rows, as counted, found 1$"):
        split_lines(b"{}\n\n", piece)


@pytest.mark.parametrize("text", [b"", b"\n\r\n", BOM.encode(), BOM.encode() + b"\n"])
def test_a_text_without_a_header_is_refused(text: bytes) -> None:
    with pytest.raises(DataError, match="cannot be read: .*Empty CSV file"):
        read_header([text])


def test_a_header_that_is_not_utf8_is_refused() -> None:
    with pytest.raises(DataError, match="line 1: expected UTF-8 text, found the byte 0xff"):
        read_header([b"a,\xff\n1,2\n"])


@pytest.mark.parametrize("size", [1, 7, 1000])
@pytest.mark.parametrize("window", [3, 50])
def test_a_record_that_is_too_long_is_refused_with_its_number(size: int, window: int) -> None:
    """Also one that ends, and whatever the blocks that were read."""
    head, record = b"a,b\n1,2\n\n3,4\n", b'5,"' + b"\n" * 95 + b'"\n'
    with (
        patch("serving.scoring.records._WINDOW_BYTES", window),
        patch("serving.scoring.cutting.RECORD_BYTES", len(record)),
    ):
        fits = head + record + b"7,8\n"
        names, _, pieces = pieces_of(fits, 8, [size])
        assert parsed(names, pieces)[1] == [0, 1, 2, 3]
        for text in (head + b" " + record, head + b'5,"' + b"\n" * 300):
            with pytest.raises(DataError, match=r"row 2: expected a .* at byte 13: is there"):
                pieces_of(text, 8, [size])
        with pytest.raises(DataError, match="header: expected a record of at most 100 bytes"):
            pieces_of(b'"' + b"x" * 100, 8, [size])
        with pytest.raises(DataError, match="row 0: expected a record of at most 100 bytes"):
            list(cut_lines(in_blocks(b"x" * 101, [size]), 8, offset=0))
