"""The same cell is the same raw input by every way in: CSV, Parquet, JSON and Python."""

from __future__ import annotations

import csv
import datetime
import json
from decimal import Decimal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from artifacts.arrow import encode_array
from artifacts.cells import (
    category_text,
    decode_row,
    encode_column,
    encode_columns,
    parse_boolean,
    parse_date,
)
from artifacts.errors import DataError
from artifacts.inputs import BooleanColumn, CategoryColumn, Column, DateColumn, TableInput
from serving.wire import RequestDecoder
from tests.scored import read_chunks

NUMBER = Column(name="number", missing="fill", low=0, high=1, typical=0.5)
BOOLEAN = BooleanColumn(name="boolean", missing="fill", typical=True)
CATEGORY = CategoryColumn(
    name="category", missing="fill", typical="a", categories=("a", "b c", "3", "true", "0.1")
)
PARTS = ("timestamp", "year", "month", "day", "weekday", "hour")
DATE = DateColumn(
    name="date", missing="fill", parts=PARTS, low="2000-01-01", high="2001-01-01",
    typical="2000-06-01",
)  # fmt: skip
SPEC = TableInput(columns=(NUMBER, BOOLEAN, CATEGORY, DATE))

numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False), st.integers(-(2**63), 2**63 - 1)
)
texts = st.text(st.characters(codec="utf-8", exclude_characters="\0\r"), max_size=8)
categories = st.one_of(
    st.sampled_from([*CATEGORY.categories, " 3.0 ", "TRUE", "unseen", "?", "", "007", "1e5"]),
    texts, numbers, st.booleans(),
)  # fmt: skip
# Whole microseconds are exact in float64 until the 23rd century.
moments = st.datetimes(
    min_value=datetime.datetime(1700, 1, 1),
    max_value=datetime.datetime(2200, 1, 1),
    timezones=st.none()
    | st.integers(-14 * 60, 14 * 60).map(
        lambda minutes: datetime.timezone(datetime.timedelta(minutes=minutes))
    ),
)
ROW = st.tuples(
    st.none() | numbers, st.none() | st.booleans(), st.none() | categories, st.none() | moments
)


def decoder(spec: TableInput) -> RequestDecoder:
    manifest: Any = SimpleNamespace(input=spec, labels=("no", "yes"))
    return RequestDecoder(manifest, max_rows=1000, max_pixels=1)


def written(cell: Any) -> str:
    """A cell in a text file."""
    if cell is None:
        return ""
    return cell.isoformat() if isinstance(cell, datetime.datetime) else str(cell)


def in_json(cell: Any) -> Any:
    return cell.isoformat() if isinstance(cell, datetime.datetime) else cell


def bits(raw: np.ndarray) -> bytes:
    # One NaN is like another; 0.0 and -0.0 are not.
    return np.where(np.isnan(raw), np.nan, raw).tobytes()


def read_raw(path: Path) -> np.ndarray:
    chunks = list(read_chunks(path, SPEC))
    assert not any(chunk.rejected for chunk in chunks)
    return np.concatenate([chunk.raw for chunk in chunks])


@settings(
    max_examples=100, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(rows=st.lists(ROW, min_size=1, max_size=8))
def test_a_table_is_the_same_raw_input_by_every_way_in(tmp_path: Path, rows: list[Any]) -> None:
    names = [column.name for column in SPEC.columns]
    cells = [list(column) for column in zip(*rows, strict=True)]
    expected, bad = encode_columns(cells, SPEC)
    assert not bad

    path = tmp_path / "table.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([names, *([written(cell) for cell in row] for row in rows)])
    assert bits(read_raw(path)) == bits(expected)

    instances = [dict(zip(names, map(in_json, row), strict=True)) for row in rows]
    request = decoder(SPEC).decode(json.dumps({"instances": instances}).encode())
    assert bits(request.raw) == bits(expected)

    utc = [parse_date(cell) for cell in cells[3]]
    columns = [
        pa.array([None if cell is None else float(cell) for cell in cells[0]], pa.float64()),
        pa.array(cells[1], pa.bool_()),
        pa.array([None if cell is None else str(cell) for cell in cells[2]], pa.string()),
        pa.array(utc, pa.timestamp("us")),
    ]
    variants = [columns, columns.copy()]
    variants[1][2] = columns[2].cast(pa.large_string()).dictionary_encode()
    variants[1][3] = pa.array(utc, pa.timestamp("us", "Asia/Tokyo"))
    for variant in variants:
        path = tmp_path / "table.parquet"
        pq.write_table(pa.table(variant, names=names), path)
        assert bits(read_raw(path)) == bits(expected)

    back = [list(decode_row(row, SPEC).values()) for row in expected]
    again, bad = encode_columns([list(column) for column in zip(*back, strict=True)], SPEC)
    assert not bad and bits(again) == bits(expected)
    answered = json.dumps({"instances": [decode_row(row, SPEC) for row in expected]})
    assert bits(decoder(SPEC).decode(answered.encode()).raw) == bits(expected)


@pytest.mark.parametrize(
    ("cells", "text"),
    [
        (["3", 3, 3.0, " 3.0 ", "3e0", np.int8(3), np.float32(3), Decimal("3.00")], "3"),
        (["true", "True", " TRUE ", True, np.True_], "true"),
        (["0.1", 0.1, "0.10", "1e-1", np.float32(0.1), np.float64(0.1), Decimal("0.1")], "0.1"),
        (["0", 0, -0.0, "-0", "-0.0"], "0"),
        ([2**53 + 1, "9007199254740993", Decimal(2**53 + 1)], "9007199254740993"),
        ([1e22, "1e22", 10**22, np.float64(1e22)], "1" + "0" * 22),
        (["007"], "007"), (["+49"], "+49"), (["1."], "1."), (["1e999"], "1e999"),
        (["NaN", None, float("nan"), "", " ? ", np.float32("nan"), Decimal("nan"), "N/A"], None),
        ([np.str_(" a b ")], "a b"), (["\ud800"], "\ud800"), (["\u00e9"], "\u00e9"),
    ],
)  # fmt: skip
def test_one_value_names_one_category(cells: list[Any], text: str | None) -> None:
    assert [category_text(cell) for cell in cells] == [text] * len(cells)


@given(cell=categories)
def test_the_text_of_a_category_names_itself(cell: Any) -> None:
    text = category_text(cell)
    assert category_text(text) == text


@given(values=st.lists(st.floats(width=32) | st.none(), max_size=20))
def test_arrow_and_numpy_name_short_floats_alike(values: list[float | None]) -> None:
    array = pa.chunked_array([pa.array(values, pa.float32())])
    seen = (category_text(np.float32(value)) for value in values if value is not None)
    names = tuple(dict.fromkeys(text for text in seen if text)) or ("a",)
    column = CategoryColumn(name="c", missing="fill", typical="a", categories=names)
    cells = [None if value is None else np.float32(value) for value in values]
    np.testing.assert_array_equal(encode_array(column, array)[0], encode_column(column, cells)[0])


@pytest.mark.parametrize("cell", [True, "true", "TRUE ", 1, 1.0, "1", "1.0", np.True_, np.int8(1)])
def test_all_that_says_true_is_true(cell: Any) -> None:
    assert parse_boolean(cell) == 1.0


@pytest.mark.parametrize(
    ("cell", "expected"),
    [
        ("2024-02-29", (2024, 2, 29)),
        (datetime.date(2024, 2, 29), (2024, 2, 29)),
        (np.datetime64("2024-02-29", "D"), (2024, 2, 29)),
        (" 2024-02-29T23:30:00-02:00 ", (2024, 3, 1, 1, 30)),
        ("2024-02-29 23:30Z", (2024, 2, 29, 23, 30)),
        ("1969-12-31T23:59:59.999999999", (1969, 12, 31, 23, 59, 59, 999999)),
        (np.datetime64(-1, "ns"), (1969, 12, 31, 23, 59, 59, 999999)),
    ],
)
def test_a_date_is_read_in_utc(cell: Any, expected: tuple[int, ...]) -> None:
    assert parse_date(cell) == datetime.datetime(*expected)
    assert parse_date(np.datetime64("NaT")) is None


@pytest.mark.parametrize(
    "kind",
    [pa.timestamp(unit, tz) for unit in ("ns", "us", "ms", "s") for tz in (None, "Europe/Rome")],
)
def test_a_time_is_the_same_from_arrow_in_every_unit(kind: pa.DataType) -> None:
    factor = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}[kind.unit]
    counts = [0, -1, 1_700_000_000 * factor + 1, -5_000_000_000 * factor - 1, None, 2**63 - 1]
    counts = counts if kind.unit != "ns" else counts[:5]
    array = pa.chunked_array([pa.array(counts, pa.int64()).cast(kind, safe=False)])
    values, bad = encode_array(DATE, array)
    microseconds = [count * 10**6 // factor for count in counts[:4]]
    epoch = datetime.datetime(1970, 1, 1)
    texts = [(epoch + datetime.timedelta(microseconds=n)).isoformat() for n in microseconds]
    np.testing.assert_array_equal(values[:5], encode_column(DATE, [*texts, None])[0])
    assert list(bad) == list(range(5, len(counts)))
    assert all("column 'date': expected a date such as" in reason for reason in bad.values())


def test_days_are_the_same_from_arrow() -> None:
    days = [datetime.date(1, 1, 1), datetime.date(2024, 2, 29), None]
    expected = encode_column(DATE, days)[0]
    for kind in (pa.date32(), pa.date64()):
        array = pa.chunked_array([pa.array(days, kind)])
        np.testing.assert_array_equal(encode_array(DATE, array)[0], expected)
    _, bad = encode_array(
        DATE, pa.chunked_array([pa.array([2**31 - 1], pa.int32()).view("date32")])
    )
    assert list(bad) == [0]


def test_decimals_are_the_nearest_floats() -> None:
    cells = [Decimal("0.1"), Decimal("123456789.12345678912"), None, Decimal("-7")]
    array = pa.chunked_array([pa.array(cells, pa.decimal128(38, 20))])
    np.testing.assert_array_equal(encode_array(NUMBER, array)[0], encode_column(NUMBER, cells)[0])


ODD = [
    True, np.True_, b"1", 10**400, 10**5000, 1 + 2j, [], {}, object(), "\ud800", float("inf"),
    Decimal("sNaN"), Decimal("Infinity"), datetime.date(2024, 1, 1), np.datetime64(2**62, "s"),
    datetime.datetime(1, 1, 1, tzinfo=datetime.timezone(datetime.timedelta(hours=5))),
    "0001-01-01T00:00+05:00", "20240131", np.datetime64(2**40, "D"), np.timedelta64(1), "x" * 10**5,
]  # fmt: skip


@pytest.mark.parametrize("column", SPEC.columns, ids=lambda column: column.type)
def test_nothing_but_a_reason_comes_of_an_odd_cell(column: Any) -> None:
    values, bad = encode_column(column, ODD)
    assert values.shape == (len(ODD), column.width)
    for reason in bad.values():
        assert reason.startswith(f"column {column.name!r}: expected ") and len(reason) < 150
    refused = {"number": [0, 1, 2, 9, 13], "boolean": [2, 9, 13], "category": [2, 5, 13]}
    assert set(refused.get(column.type, [0, 1, 2, 3, 9, 15, 16, 17])) <= set(bad)


def test_columns_of_other_shapes_are_named() -> None:
    with pytest.raises(DataError, match="column 'number': expected one cell a row"):
        encode_columns([np.zeros((2, 2)), [], [], []], SPEC)
    with pytest.raises(DataError, match="column 'category': expected 2 cells, as in column"):
        encode_columns([[1, 2], [None, None], ["a"], [None, None]], SPEC)
    for column, array in (
        (NUMBER, pa.array([True])), (NUMBER, pa.array([0], pa.date32())),
        (CATEGORY, pa.array([b"x"])), (BOOLEAN, pa.array([[1]])), (DATE, pa.array([1.0])),
        (CATEGORY, pa.array([0], pa.timestamp("s"))),
        (CATEGORY, pa.array([b"\xff"]).view(pa.string())),
    ):  # fmt: skip
        with pytest.raises(DataError, match=f"column '{column.name}': "):
            encode_array(column, pa.chunked_array([array]))


GOOD = {"number": 1, "boolean": True, "category": "a", "date": "2024-01-31"}


@pytest.mark.parametrize(
    ("name", "cell", "message"),
    [
        ("number", "1", "instances[1].number: expected `float | null`, got `str`"),
        ("boolean", [], "instances[1].boolean: expected `bool | int | float | str | null`"),
        ("boolean", 2, "instances[1]: column 'boolean': expected true or false, found 2"),
        ("category", {}, "instances[1].category: expected "),
        ("date", 5, "instances[1].date: expected `str | null`, got `int`"),
        ("date", "5", "instances[1]: column 'date': expected a date such as 2026-01-31, found '5'"),
    ],
)
def test_a_bad_cell_of_a_request_is_named(name: str, cell: Any, message: str) -> None:
    with pytest.raises(DataError) as raised:
        decoder(SPEC).decode(json.dumps({"instances": [GOOD, {**GOOD, name: cell}]}).encode())
    assert str(raised.value).startswith(message)


@pytest.mark.parametrize("name", list(GOOD))
def test_null_is_refused_where_training_had_none_missing(name: str) -> None:
    columns = [column.model_copy(update={"missing": "reject"}) for column in SPEC.columns]
    strict = decoder(TableInput(columns=tuple(columns)))
    body = json.dumps({"instances": [{**GOOD, name: None}]}).encode()
    with pytest.raises(DataError, match=rf"instances\[0\]\.{name}: expected .*got `null`"):
        strict.decode(body)
    assert np.isnan(decoder(SPEC).decode(body).raw).any()


@given(
    moment=moments,
    parts=st.lists(st.sampled_from(PARTS), min_size=1, max_size=6, unique=True),
)
def test_parts_of_a_date_become_a_date_with_these_parts(moment: Any, parts: Any) -> None:
    column = DATE.model_copy(update={"parts": tuple(parts)})
    spec = TableInput(columns=(column,))
    raw, _ = encode_columns([[moment]], spec)
    again, bad = encode_columns([[decode_row(raw[0], spec)["date"]]], spec)
    assert not bad
    np.testing.assert_array_equal(again, raw)
