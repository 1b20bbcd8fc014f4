from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from artifacts.cells import check_columns, encode_columns, parse_number
from artifacts.errors import DataError
from artifacts.inputs import Column, TableInput


def column(name: str, missing: str = "reject") -> Column:
    return Column(name=name, missing=missing, low=0, high=1, typical=0.5)


SPEC = TableInput(columns=(column("a"), column("b", "fill")))


@given(value=st.floats(allow_nan=False, allow_infinity=False))
def test_a_written_number_is_read_back_bit_for_bit(value: float) -> None:
    assert parse_number(repr(value)) == value
    assert parse_number(f"  {value!r} ") == value


@pytest.mark.parametrize("text", ["", "  ", "NA", "n/a", "NaN", "null", "None", "?"])
def test_texts_for_a_missing_value_are_missing(text: str) -> None:
    assert math.isnan(parse_number(text))


@pytest.mark.parametrize("text", ["abc", "1,5", "inf", "-Infinity", "1e999", "1_000", "0x10", "--"])
def test_what_is_no_finite_number_is_refused(text: str) -> None:
    with pytest.raises(DataError, match="expected a number, found"):
        parse_number(text)


@given(
    rows=st.lists(
        st.tuples(
            st.floats(allow_nan=True, allow_infinity=True),
            st.floats(allow_nan=True, allow_infinity=True),
        ),
        max_size=30,
    )
)
def test_text_numbers_and_arrays_are_encoded_alike(rows: list[tuple[float, float]]) -> None:
    arrays = [np.array([row[i] for row in rows], dtype=np.float64) for i in range(2)]
    numbers = [[None if math.isnan(row[i]) else row[i] for row in rows] for i in range(2)]
    texts = [[repr(row[i]) for row in rows] for i in range(2)]
    expected, bad = encode_columns(arrays, SPEC)
    good = [row for row in range(len(rows)) if row not in bad]
    for cells in (numbers, texts):
        encoded, bad_too = encode_columns(cells, SPEC)
        assert set(bad_too) == set(bad)
        np.testing.assert_array_equal(encoded[good], expected[good])
    for index, (a, b) in enumerate(rows):
        assert (index in bad) == (math.isnan(a) or math.isinf(a) or math.isinf(b))


def test_reasons_name_the_column() -> None:
    _, bad = encode_columns([["1", "x", "", "inf"], ["", "1", "1", "1"]], SPEC)
    assert bad == {
        1: "column 'a': expected a number, found 'x'",
        2: "column 'a': the value is missing, and this column had none missing in training",
        3: "column 'a': expected a number, found 'inf'",
    }


def test_columns_are_compared_by_name() -> None:
    check_columns(["b", "a"], SPEC, extra_allowed=False)
    check_columns(["b", "x", "a"], SPEC, extra_allowed=True)
    with pytest.raises(DataError, match="missing column: 'b'; other columns: 'B'"):
        check_columns(["a", "B"], SPEC, extra_allowed=True)
    with pytest.raises(DataError, match="unknown column: 'x'"):
        check_columns(["a", "b", "x"], SPEC, extra_allowed=False)
    with pytest.raises(DataError, match="column twice: 'a'"):
        check_columns(["a", "b", "a"], SPEC, extra_allowed=True)
