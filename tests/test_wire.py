"""JSON requests and answers against plain readings of the same."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from artifacts.cells import encode_columns
from artifacts.errors import DataError
from artifacts.inputs import (
    BooleanColumn,
    CategoryColumn,
    Column,
    DateColumn,
    ImageInput,
    TableInput,
)
from serving.wire import RequestDecoder, response_encoder

TABLE = TableInput(
    columns=(
        CategoryColumn(name="k", missing="fill", typical="a", categories=("a", "1", "true", "?")),
        BooleanColumn(name="b", missing="reject", typical=True),
        Column(name="n", missing="fill", low=0, high=1, typical=0.5),
        DateColumn(name="d", parts=("year", "day"), low="2000", high="2001", typical="2000"),
    )
)


def model(spec: Any, labels: tuple[str, ...] = ("no", "yes")) -> Any:
    return SimpleNamespace(input=spec, labels=labels, reference="name@1", threshold=0.5)


def decode(spec: Any, instances: Any) -> np.ndarray:
    decoder = RequestDecoder(model(spec), max_rows=100, max_pixels=1)
    return decoder.decode(json.dumps({"instances": instances}).encode()).raw


@given(
    gray=hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(4), st.just(5))),
    colour=hnp.arrays(np.uint8, st.tuples(st.integers(1, 3), st.just(2), st.just(3), st.just(3))),
)
def test_nested_pixels_arrive_as_they_were_sent(gray: np.ndarray, colour: np.ndarray) -> None:
    raw = decode(ImageInput(channels=1, height=4, width=5), gray.tolist())
    np.testing.assert_array_equal(raw, gray[:, np.newaxis])
    raw = decode(ImageInput(channels=3, height=2, width=3), colour.tolist())
    np.testing.assert_array_equal(raw, colour.transpose(0, 3, 1, 2))
    assert raw.dtype == np.uint8 and raw.flags.c_contiguous and raw.flags.writeable


@pytest.mark.parametrize("value", [-1, 256, 10**30, 1.0, True, None, "1", []])
def test_what_is_no_pixel_is_named(value: Any) -> None:
    spec = ImageInput(channels=1, height=2, width=2)
    with pytest.raises(DataError, match=r"^instances\[1\]\[0\]\[1\]: "):
        decode(spec, [[[0, 0], [0, 0]], [[0, value], [0, 0]]])


def test_a_picture_of_another_size_is_named() -> None:
    spec = ImageInput(channels=1, height=2, width=2)
    with pytest.raises(DataError, match=r"^instances\[0\]\[1\]: expected `array` of length <= 2"):
        decode(spec, [[[0, 0], [0, 0, 0]]])


CELLS = (
    st.sampled_from(["a", "1", "true", "?", " a", "TRUE", "1.0", "new", 1, 1.0, True, None, -0.0]),
    st.sampled_from([True, False, 1, 0, 1.0, -0.0, "true", " 0 ", 2, "maybe"]),
    st.none() | st.floats(allow_nan=False, allow_infinity=False),
    st.sampled_from(["2024-02-29", "1999-12-31T23:59:59+01:00", "2024-02-30"]),
)


@given(rows=st.lists(st.tuples(*CELLS), min_size=1, max_size=5))
def test_a_cell_that_is_looked_up_is_the_cell_that_is_parsed(rows: list[tuple[Any, ...]]) -> None:
    instances = [dict(zip("kbnd", row, strict=True)) for row in rows]
    raw, bad = encode_columns(list(zip(*rows, strict=True)), TABLE)
    if bad:
        with pytest.raises(DataError) as raised:
            decode(TABLE, instances)
        assert str(raised.value) == f"instances[{min(bad)}]: {bad[min(bad)]}"
    else:
        found = decode(TABLE, instances)
        assert found.flags.c_contiguous and found.tobytes() == raw.tobytes()


@given(
    labels=st.lists(st.text(st.characters(codec="utf-8")), min_size=2, max_size=6, unique=True),
    data=st.data(),
)
def test_an_answer_has_each_labels_bits_in_the_order_asked_for(
    labels: list[str], data: st.DataObject
) -> None:
    # Few different values, so that some tie.
    values = st.sampled_from([0.0, 0.1, 1 / 3, 1.0]) | st.floats(0, 1, width=32)
    shape = (data.draw(st.integers(1, 3)), len(labels))
    rows = data.draw(hnp.arrays(np.float32, shape, elements=values.map(np.float32)))
    top_k = data.draw(st.none() | st.integers(1, len(labels)))
    answer = json.loads(response_encoder(model(None, tuple(labels)))(rows, top_k))
    assert answer["model"] == "name@1" and len(answer["predictions"]) == len(rows)
    for prediction, row in zip(answer["predictions"], rows.tolist(), strict=True):
        order = range(len(labels))
        if top_k is not None:
            order = sorted(order, key=lambda k, row=row: -row[k])[:top_k]
        best = row.index(max(row))
        assert list(prediction["probabilities"].items()) == [(labels[k], row[k]) for k in order]
        assert prediction["label"] == labels[best] and prediction["index"] == best
        assert prediction["probability"] == row[best]


@pytest.mark.parametrize("odd", ['a "quoted" name', "back\\slash", "tab\there"])
def test_columns_whose_names_json_must_escape_are_columns_like_others(odd: str) -> None:
    def spec(name: str) -> TableInput:
        number = Column(name=name, low=0, high=1, typical=0.5)
        other = CategoryColumn(name="b", categories=("x", "y"), typical="x", missing="fill")
        return TableInput(columns=(number, other))

    def said(name: str, instances: Any) -> str:
        try:
            return repr(decode(spec(name), instances).tolist())
        except DataError as error:
            return str(error).replace(name, "NAME")

    for rows in (
        [["NAME", 0.25], ["b", "y"]],
        [["NAME", 3], ["b", "never seen"]],
        [["NAME", "3"], ["b", "y"]],
        [["NAME", None], ["b", "y"]],
        [["NAME", 1], ["b", None]],
        [["NAME", 1], ["b", [1]]],
        [["NAME", 1]],
        [["NAME", 1], ["b", "x"], ["c", 1]],
    ):
        by_name = {name: [{"NAME": 1.5, "b": "x"}, dict(rows)] for name in (odd, "plain")}
        answers = [
            said(name, [{key.replace("NAME", name): cell for key, cell in row.items()}
                        for row in instances])
            for name, instances in by_name.items()
        ]  # fmt: skip
        assert answers[0] == answers[1]
