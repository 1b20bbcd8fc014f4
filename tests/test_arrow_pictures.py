"""Pixels in Arrow columns, against the rule row by row."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.arrow import encode_pictures
from artifacts.errors import DataError
from artifacts.inputs import ImageInput

SPEC = ImageInput(channels=1, height=2, width=2)
PIXELS = st.lists(st.none() | st.integers(-2, 300), min_size=0, max_size=6)
GOOD = st.lists(st.integers(0, 255), min_size=4, max_size=4)


def by_hand(pixels: list[int | None] | None) -> tuple[list[int], str | None]:
    if pixels is None or None in pixels:
        return [0] * 4, "the value is missing"
    if len(pixels) != 4:
        return [0] * 4, f"expected 4 pixels, found {len(pixels)}"
    if min(pixels) < 0 or max(pixels) > 255:
        return [0] * 4, "expected pixels from 0 to 255, found others"
    return pixels, None


def check(array: pa.Array, rows: list[Any]) -> None:
    raw, bad = encode_pictures("pixels", array, SPEC)
    expected = [by_hand(row) for row in rows]
    assert raw.shape == (len(rows), 1, 2, 2) and raw.dtype == np.uint8
    reasons = {row: f"column 'pixels': {why}" for row, (_, why) in enumerate(expected) if why}
    assert bad == reasons
    for row, (pixels, why) in enumerate(expected):
        assert why or raw[row].ravel().tolist() == pixels


@settings(deadline=None)
@given(
    rows=st.lists(st.none() | GOOD | PIXELS, max_size=12),
    kind=st.sampled_from([pa.list_(pa.int16()), pa.large_list(pa.int64())]),
    start=st.integers(0, 3),
)
def test_lists_of_integers(rows: list[Any], kind: pa.DataType, start: int) -> None:
    check(pa.array(rows, kind).slice(start), rows[start:])


@settings(deadline=None)
@given(rows=st.lists(st.none() | GOOD, max_size=12), start=st.integers(0, 3))
def test_layouts_of_bytes(rows: list[Any], start: int) -> None:
    check(pa.array(rows, pa.list_(pa.uint8())).slice(start), rows[start:])
    check(pa.array(rows, pa.list_(pa.uint8(), 4)).slice(start), rows[start:])
    fixed = [None if row is None else bytes(row) for row in rows]
    check(pa.array(fixed, pa.binary(4)).slice(start), rows[start:])


def test_good_pixels_are_not_copied() -> None:
    fixed = pa.array([bytes(range(4)), bytes(4)], pa.binary(4))
    lists = pa.array([list(range(4)), [0] * 4], pa.list_(pa.uint8()))
    for array, buffer in ((fixed, fixed.buffers()[1]), (lists, lists.values.buffers()[1])):
        raw, _ = encode_pictures("pixels", array, SPEC)
        assert raw.ctypes.data == buffer.address


def test_fixed_lists_of_another_length_are_all_bad() -> None:
    array = pa.array([[1, 2, 3]], pa.list_(pa.uint8(), 3))
    assert encode_pictures("p", array, SPEC)[1] == {0: "column 'p': expected 4 pixels, found 3"}
    for kind in (pa.binary(3), pa.list_(pa.float32())):
        with pytest.raises(DataError, match="expected encoded pictures"):
            encode_pictures("p", pa.nulls(1, kind), SPEC)
