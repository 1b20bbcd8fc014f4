"""What the Open Inference Protocol's codec refuses: by name, and at no more than linear cost."""

from __future__ import annotations

import json
import time
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tritonclient.http import InferRequestedOutput

from artifacts.errors import DataError
from artifacts.inputs import CategoryColumn, TableInput
from serving.oip import InferenceProtocol
from tests.oip import (
    MAX_ROWS,
    PIXELS,
    body_of,
    column_of,
    decode_json,
    images,
    manifest_of,
    number,
    row_of,
    table,
    tensor,
)  # fmt: skip


def test_a_row_that_cannot_be_is_named_with_its_column() -> None:
    cells = {
        name: column_of(value["data"] * 3, value["datatype"]) for name, value in row_of().items()
    }
    for name, wrong, place in (
        ("new", column_of(["yes", "maybe", "no"], "BYTES"), r"row 0: column 'new': expected true"),
        ("day", column_of(["", "2026-13", ""], "BYTES"), r"row 1: column 'day': expected a date"),
        ("size", column_of(["1", "2", "x"], "BYTES"), r"row 2: column 'size': expected a number"),
        ("size", column_of([1, 1e300, 2], "FP32"), r"row 1: column 'size': .*found infinity"),
        ("new", column_of([0, 2, 1], "INT8"), r"row 1: column 'new': expected true or false"),
    ):
        with pytest.raises(DataError, match=place):
            decode_json(table, **{**cells, name: wrong})


# Truncation and the flipping of bits of every kind of request: an answer or a DataError.
REQUESTS = [
    (images, *body_of(tensor("images", PIXELS, "UINT8"), request_id="x")),
    (images, *body_of(tensor("images", PIXELS, "UINT8", binary=False), parameters={"a": "b"})),
    (
        table,
        *body_of(
            *[
                tensor(name, np.array([cell], dtype=np.object_), "BYTES", binary=name != "day")
                for name, cell in zip(row_of(), ("1", "2", "true", "red", ""), strict=True)
            ],
            outputs=[InferRequestedOutput("logits", class_count=1)],
        ),
    ),
]


@settings(deadline=None)
@given(
    request=st.sampled_from(REQUESTS),
    changes=st.lists(st.tuples(st.integers(0, 2000), st.integers(0, 255)), max_size=4),
    cut=st.integers(0, 40),
    shift=st.sampled_from([0, 0, 0, 1, -1, None]),
)
def test_a_damaged_request_is_answered_or_a_data_error(
    request: tuple[InferenceProtocol, bytes, int | None],
    changes: list[tuple[int, int]],
    cut: int,
    shift: int | None,
) -> None:
    protocol, body, length = request
    damaged = bytearray(body)
    for place, value in changes:
        damaged[place % len(damaged)] = value
    length = None if length is None or shift is None else length + shift
    try:
        found = protocol.decode(bytes(damaged[: len(damaged) - cut]), length)
    except DataError:
        return
    assert 1 <= len(found.raw) <= MAX_ROWS
    answer = np.zeros((len(found.raw), 3), dtype=np.float32)
    body, length = protocol.encode(found, answer, answer)
    assert json.loads(body[:length])["outputs"]


IMAGE = {"name": "images", "shape": [1, 6], "datatype": "UINT8", "data": [0] * 6}
BINARY = {key: value for key, value in IMAGE.items() if key != "data"}


def image(**changed: Any) -> dict[str, Any]:
    """A request of one picture, but for what is changed."""
    return {"inputs": [{**IMAGE, **changed}]}


def sized(size: Any, **more: Any) -> dict[str, Any]:
    return {"inputs": [{**BINARY, "parameters": {"binary_data_size": size, **more}}]}


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ([], "the request: expected `object`"),
        ({}, "the request: .*missing required field `inputs`"),
        ({"inputs": []}, "missing input: 'images'"),
        ({"inputs": [IMAGE, IMAGE]}, "input 'images': expected once, found twice"),
        (image(name="x" * 999), r"input 'xx+\.\.\.': not known; expected 'images'"),
        (image(datatype="FP32"), "'images': expected datatype UINT8, found 'FP32'"),
        (image(shape=[1, 7]), r"'images': expected shape \[N, 1, 2, 3\] or .*\[1, 7\]"),
        (image(shape=[]), r"'images': expected shape .* found \[\]"),
        (image(shape=[0, 6]), "'images': expected 1 to 64 rows, found 0"),
        (image(shape=[-1, 6]), "'images': expected 1 to 64 rows, found -1"),
        (image(shape=[99999999999, 6]), "1 to 64 rows, found 99999999999"),
        (image(shape=[10**4000, 6]), "1 to 64 rows, found a num"),
        (image(shape=[1.5, 6]), r"request\.inputs\[0\]\.shape\[0\]: expected `int`"),
        (image(data=[0] * 5), "'images': data: expected 6 .* found 5"),
        (image(data=[[0] * 5]), "'images': data: expected 6 .* found 5"),
        (image(data=[[0] * 6] * 2), "'images': data: expected 1 elements"),
        (image(data=[0] * 5 + [256]), r"'images': data\[5\]: expected `int` <= 255"),
        (image(data=[0] * 5 + [None]), r"'images': data\[5\]: expected `int`, got `null`"),
        (image(data=[[[0]] * 6]), r"'images': data\[0\]\[0\]: expected `int`, got `array`"),
        (image(data="abc"), "'images': data: expected `array`, got `str`"),
        ({"inputs": [BINARY]}, "'images': expected data or binary_data_size, found neither"),
        (image(parameters={"binary_data_size": 6}), "'images': expected data or .*, found both"),
        (sized(7), "'images': expected a binary_data_size of 6 .* found 7"),
        (sized(-6), "'images': expected a binary_data_size of 6 .* found -6"),
        (sized(6), "binary_data_size: expected the header Inference-Header-Content"),
        (sized(6, shared_memory_region="r"), "'images': shared memory is not offered"),
        (sized(None, shared_memory_byte_size=1), "'images': shared memory is not"),
        ({**image(), "outputs": [{"name": "y"}]}, "output 'y': not known; expected 'logits', "),
        ({**image(), "outputs": [{"name": "label"}] * 2}, "output 'label': expected once"),
        ({**image(), "parameters": {"sequence_id": 7}}, "sequence_id: this model has no"),
        ({**image(), "parameters": {"sequence_start": True}}, "sequence_id: this model has"),
        ({**image(), "id": 5}, r"the request\.id: expected `str \| null`, got `int`"),
    ],
)
def test_a_header_that_does_not_fit_names_the_place(header: Any, message: str) -> None:
    with pytest.raises(DataError, match=message):
        images.decode(json.dumps(header).encode(), None)


@pytest.mark.parametrize(
    ("name", "parameters", "message"),
    [
        ("label", {"classification": 1}, "'label': classification is for logits and"),
        ("logits", {"classification": 0}, "expected a classification of 1 to 3 labels, found 0"),
        ("logits", {"classification": 4}, "expected a classification of 1 to 3 labels, found 4"),
        ("logits", {"shared_memory_offset": 0}, "'logits': shared memory is not offered"),
    ],
)
def test_an_output_that_cannot_be_names_itself(
    name: str, parameters: dict[str, Any], message: str
) -> None:
    header = {"inputs": [IMAGE], "outputs": [{"name": name, "parameters": parameters}]}
    with pytest.raises(DataError, match=message):
        images.decode(json.dumps(header).encode(), None)


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"weight": column_of([1.0, 2.0], "FP64")}, "'weight': expected 1 rows, as in .* found 2"),
        ({"size": column_of([None], "FP64")}, r"'size': data\[0\]: expected `float`, got `null`"),
        ({"size": column_of(["7"], "FP64")}, r"'size': data\[0\]: expected `float`, got `str`"),
        ({"size": column_of([True], "FP32")}, r"'size': data\[0\]: expected `float`, got `bool`"),
        ({"size": column_of([True], "BOOL")}, "'size': expected datatype BF16, BYTES, FP16"),
        ({"size": column_of([1], "BF16")}, "'size': data: expected binary data for BF16"),
        ({"size": column_of([300], "UINT8")}, r"'size': data\[0\]: expected `int` <= 255"),
        ({"size": column_of([2**64], "UINT64")}, "'size': data: expected at most 1844674407"),
        ({"size": column_of([2.5], "INT32")}, r"'size': data\[0\]: expected `int`, got `float`"),
        ({"day": column_of([2026], "INT32")}, "'day': expected datatype BYTES, found 'INT32'"),
        ({"kind": column_of([5], "BYTES")}, r"'kind': data\[0\]: expected `str \| null`"),
        ({"new": column_of([1], "BOOL")}, r"'new': data\[0\]: expected `bool \| null`, got `int`"),
    ],
)
def test_a_column_that_does_not_fit_is_named(changed: dict[str, Any], message: str) -> None:
    with pytest.raises(DataError, match=message):
        decode_json(table, **row_of(**changed))


def test_columns_that_are_not_there_are_named() -> None:
    row = row_of()
    del row["weight"], row["day"]
    with pytest.raises(DataError, match="missing input: 'weight', 'day'"):
        decode_json(table, **row)


@pytest.mark.parametrize(
    ("length", "found"), [(0, "0"), (-5, "-5"), (10**6, "1000000"), (10**30, "a")]
)
def test_the_length_of_the_json_lies_within_the_body(length: int, found: str) -> None:
    body, _ = body_of(tensor("images", PIXELS, "UINT8"))
    with pytest.raises(DataError, match=f"Content-Length: expected 1 to {len(body)}, .* {found}"):
        images.decode(body, length)


@pytest.mark.parametrize("extra", [1, -1])
def test_binary_data_is_as_long_as_its_inputs_say(extra: int) -> None:
    body, length = body_of(tensor("images", PIXELS, "UINT8"))
    changed = body + b"x" if extra > 0 else body[:-1]
    with pytest.raises(DataError, match=f"expected 6 bytes of binary data, .* found {6 + extra}"):
        images.decode(changed, length)


KIND = InferenceProtocol(
    manifest_of(TableInput(columns=(CategoryColumn(name="kind", categories=("a",), typical="a"),))),
    max_rows=MAX_ROWS,
)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", r"'kind': data\[0\]: expected 2 elements, found 0"),
        (b"\1\0\0\0a", r"'kind': data\[1\]: expected 2 elements, found 1"),
        (b"\1\0\0\0a\1\0\0", r"'kind': data\[1\]: expected 2 elements, found 1"),
        (b"\xff\xff\xff\xffa", r"'kind': data\[0\]: expected 4294967295 bytes, .* found 1"),
        (b"\0\0\0\0\2\0\0\0a", r"'kind': data\[1\]: expected 2 bytes, .* found 1"),
        (b"\1\0\0\0a\1\0\0\0ab", r"'kind': data: 1 bytes more than its 2 elements"),
        (b"\1\0\0\0a\1\0\0\0\xff", r"'kind': data\[1\]: not UTF-8"),
    ],
)
def test_texts_whose_lengths_lie_are_refused(data: bytes, message: str) -> None:
    given = {"name": "kind", "shape": [2], "datatype": "BYTES"}
    header = {"inputs": [{**given, "parameters": {"binary_data_size": len(data)}}]}
    body = json.dumps(header).encode()
    with pytest.raises(DataError, match=message):
        KIND.decode(body + data, len(body))


def test_texts_of_a_negative_size_and_json_that_is_not_utf_8_are_refused() -> None:
    given = {"name": "kind", "shape": [2], "datatype": "BYTES"}
    sizes = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": -3}}]}).encode()
    with pytest.raises(DataError, match="'kind': expected a binary_data_size of at least 0"):
        KIND.decode(sizes, len(sizes))
    texts = json.dumps({"inputs": [{**given, "data": ["a", "?"]}]}).encode()
    with pytest.raises(DataError, match="'kind': data: not JSON: .*utf-8"):
        KIND.decode(texts.replace(b"?", b"\xff"), None)


def test_a_byte_that_is_no_boolean_is_refused() -> None:
    given = {"name": "kind", "shape": [2], "datatype": "BOOL"}
    body = json.dumps({"inputs": [{**given, "parameters": {"binary_data_size": 2}}]}).encode()
    assert len(KIND.decode(body + b"\0\1", len(body)).raw) == 2
    with pytest.raises(DataError, match="'kind': data: expected bytes 0 or 1 for BOOL"):
        KIND.decode(body + b"\1\2", len(body))


def test_infinity_and_a_missing_value_in_bytes_are_refused_by_row() -> None:
    columns = TableInput(columns=(number("a"), number("b", "fill")))
    protocol = InferenceProtocol(manifest_of(columns), max_rows=MAX_ROWS)
    for column, row, value, message in (
        ("a", 1, np.inf, "row 1: column 'a': expected a finite number, found infinity"),
        ("a", 2, np.nan, "row 2: column 'a': the value is missing"),
        ("b", 0, -np.inf, "row 0: column 'b': expected a finite number, found infinity"),
    ):
        arrays = {name: np.ones((3, 1)) for name in ("a", "b")}
        arrays[column][row] = value
        with pytest.raises(DataError, match=message):
            protocol.decode(*body_of(*[tensor(name, a, "FP64") for name, a in arrays.items()]))


MANY = 200_000


@pytest.mark.parametrize(
    "body",
    [
        b"[" * MANY,
        b'{"inputs": [{"name": "images", "shape": [1, 6], "datatype": "UINT8", "data": %b}]}'
        % (b"[" * MANY + b"]" * MANY),
        b'{"inputs": [], "other": %b}' % (b'{"a":' * MANY + b"1" + b"}" * MANY),
        b'{"inputs": [{"name": "images", "shape": [%b1], "datatype": "UINT8"}]}' % (b"1, " * MANY),
        json.dumps({"inputs": [{**BINARY, "name": str(n)} for n in range(MANY // 10)]}).encode(),
        json.dumps({"inputs": [IMAGE], "outputs": [{"name": "label"}] * MANY}).encode(),
        json.dumps({"inputs": [{**IMAGE, "data": [9] * MANY}]}).encode(),
        json.dumps({"inputs": [{**IMAGE, "shape": [64, 6], "data": [[]] * MANY}]}).encode(),
        b'{"inputs": [{"name": "images", "shape": [%b, 6], "datatype": "UINT8"}]}' % (b"9" * 4000),
        b"\xff\xfe",
        b'{"inputs": [{"name": "\xff", "shape": [1], "datatype": "UINT8"}]}',
        b'{"inputs": [{"name": "images", "shape": [1, 6], "datatype": "UINT8", "data": ["\xff"]}]}',
        b"",
    ],
)
def test_a_hostile_body_is_refused_at_linear_cost(body: bytes) -> None:
    start = time.thread_time()
    with pytest.raises(DataError) as refused:
        images.decode(body, None)
    # Milliseconds of a processor, however busy it is; what is quadratic takes minutes.
    assert time.thread_time() - start < 5
    assert len(str(refused.value)) < 500
