"""The Open Inference Protocol's codec, on the bytes of an unmodified Triton client."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from tritonclient.http import InferRequestedOutput, InferResult

from artifacts.cells import encode_columns
from artifacts.errors import DataError
from artifacts.inputs import CategoryColumn, TableInput
from serving.oip import InferenceProtocol
from tests.oip import (
    GRAY,
    MAX_ROWS,
    MIXED,
    PIXELS,
    RELEASED,
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


@settings(deadline=None)
@given(pixels=hnp.arrays(np.uint8, st.tuples(st.integers(1, 9), *map(st.just, GRAY.shape))))
def test_a_picture_is_the_same_raw_input_as_bytes_and_as_json_in_each_shape(
    pixels: np.ndarray,
) -> None:
    rows = len(pixels)
    for shape in ((rows, 1, 2, 3), (rows, 2, 3), (rows, 6)):
        array = pixels.reshape(shape)
        for binary in (True, False):
            body = body_of(tensor("images", array, "UINT8", binary=binary))
            raw = images.decode(*body).raw
            assert raw.dtype == np.uint8
            np.testing.assert_array_equal(raw, pixels)
        nested = {"shape": shape, "datatype": "UINT8", "data": array.tolist()}
        np.testing.assert_array_equal(decode_json(images, images=nested), pixels)


CELLS = {
    "size": st.floats(allow_nan=False, allow_infinity=False),
    "weight": st.none() | st.floats(allow_nan=False, allow_infinity=False),
    "new": st.sampled_from([None, True, False]),
    "kind": st.sampled_from([None, "red", "3.0", "true", "else", "ü"]),
    "day": st.sampled_from([None, "2026-01-31", "1999-12-31T23:59:59"]),
}


@settings(deadline=None)
@given(
    rows=st.lists(st.fixed_dictionaries(CELLS), min_size=1, max_size=8),
    order=st.permutations(range(5)),
    binary=st.lists(st.booleans(), min_size=5, max_size=5),
    wide=st.booleans(),
)
def test_a_table_is_the_same_as_json_as_bytes_and_mixed_in_any_order(
    rows: list[dict[str, Any]], order: list[int], binary: list[bool], wide: bool
) -> None:
    cells = {name: [row[name] for row in rows] for name in CELLS}
    expected, bad = encode_columns(list(cells.values()), MIXED)
    assert not bad
    as_json = {
        name: column_of(values, "FP64" if name in ("size", "weight") else "BYTES", nested=wide)
        for name, values in cells.items()
    }
    as_json["new"]["datatype"] = "BOOL"
    np.testing.assert_array_equal(decode_json(table, **as_json), expected)
    inputs = []
    for name, values in cells.items():
        if name in ("size", "weight"):
            array = np.array(values, dtype=np.float64)
        else:
            texts = ["NA" if cell is None else str(cell) for cell in values]
            array = np.array([text.encode() for text in texts], dtype=np.object_)
        array = array.reshape(-1, 1) if wide else array
        # The client writes NaN, which is no JSON.
        is_binary = binary[len(inputs)] or name == "weight"
        datatype = "FP64" if array.dtype == np.float64 else "BYTES"
        inputs.append(tensor(name, array, datatype, binary=is_binary))
    body = body_of(*(inputs[index] for index in order))
    np.testing.assert_array_equal(table.decode(*body).raw, expected)


@pytest.mark.parametrize(
    ("datatype", "values"),
    [
        *[(f"FP{bits}", [-2.5, 0.1, 65504.0]) for bits in (64, 32, 16)],
        *[(f"INT{bits}", [-(2 ** (bits - 1)), 3, 2 ** (bits - 1) - 1]) for bits in (8, 16, 32, 64)],
        *[(f"UINT{bits}", [0, 3, 2**bits - 1]) for bits in (8, 16, 32, 64)],
    ],
)
def test_numbers_of_every_datatype_are_read_alike_as_bytes_and_as_json(
    datatype: str, values: list[float]
) -> None:
    """All as one matrix, columns of several datatypes, JSON, and as categories."""
    bits = "".join(filter(str.isdigit, datatype))
    kind = {"F": "float", "I": "int", "U": "uint"}[datatype[0]]
    array = np.array(values, dtype=f"{kind}{bits}")
    numbers = InferenceProtocol(
        manifest_of(TableInput(columns=(number("a"), number("b")))), max_rows=MAX_ROWS
    )
    expected = np.stack([array, array[::-1]], axis=1).astype(np.float64)
    first = tensor("a", array, datatype)
    for body in (
        body_of(first, tensor("b", array[::-1], datatype)),
        body_of(first, tensor("b", array[::-1].astype(np.float64), "FP64")),
        body_of(first, tensor("b", array[::-1], datatype, binary=False)),
        body_of(tensor("b", array[::-1], datatype), first),
    ):
        raw = numbers.decode(*body).raw
        assert raw.dtype == np.float64 and raw.flags.c_contiguous
        np.testing.assert_array_equal(raw, expected)
    categories = TableInput(
        columns=(CategoryColumn(name="c", categories=("3", "0.1"), typical="3"),)
    )
    texts = InferenceProtocol(manifest_of(categories), max_rows=MAX_ROWS)
    index = 1 if datatype in ("FP64", "FP32") else 2 if kind == "float" else 0
    for binary in (True, False):
        raw = texts.decode(*body_of(tensor("c", array, datatype, binary=binary))).raw
        assert raw[1, 0] == index


def test_a_brain_float_is_the_upper_half_of_a_float32() -> None:
    ml_dtypes = pytest.importorskip("ml_dtypes")
    array = np.array([1.5, -0.1, 3e38], dtype=ml_dtypes.bfloat16)
    numbers = InferenceProtocol(manifest_of(TableInput(columns=(number("a"),))), max_rows=MAX_ROWS)
    raw = numbers.decode(*body_of(tensor("a", array, "BF16"))).raw
    np.testing.assert_array_equal(raw[:, 0], array.astype(np.float64))


@pytest.mark.parametrize("cell", ["", " NA ", None])
def test_a_missing_value_is_answered_where_the_column_allows_it(cell: str | None) -> None:
    for name in ("weight", "new", "kind", "day"):
        raw = decode_json(table, **row_of(**{name: column_of([cell], "BYTES")}))
        assert np.isnan(raw).any()
    with pytest.raises(DataError, match="size"):
        decode_json(table, **row_of(size=column_of([cell], "BYTES")))


def test_a_missing_number_is_nan_in_bytes_and_null_in_json() -> None:
    columns = (number("a"), number("b", "fill"))
    numbers = InferenceProtocol(manifest_of(TableInput(columns=columns)), max_rows=MAX_ROWS)
    for datatype, dtype in (("FP64", np.float64), ("FP32", np.float32), ("FP16", np.float16)):
        given = [tensor("a", np.ones(2, dtype), datatype)]
        given += [tensor("b", np.array([np.nan, 2], dtype), datatype)]
        expected = np.array([[1, np.nan], [1, 2]])
        np.testing.assert_array_equal(numbers.decode(*body_of(*given)).raw, expected)
    for datatype in ("FP64", "FP32", "INT8", "UINT64"):
        columns = {"a": column_of([1, 1], datatype), "b": column_of([None, 2], datatype)}
        np.testing.assert_array_equal(decode_json(numbers, **columns), expected)


@st.composite
def answers(draw: st.DrawFn) -> tuple[np.ndarray, np.ndarray]:
    rows = draw(st.integers(1, 5))
    finite = {"allow_nan": False, "allow_infinity": False, "width": 32}
    logits = draw(hnp.arrays(np.float32, (rows, 3), elements=st.floats(**finite)))
    probabilities = draw(hnp.arrays(np.float32, (rows, 3), elements=st.floats(0, 1, width=32)))
    return logits, probabilities


NAMES = ("logits", "probabilities", "label")


@settings(deadline=None, max_examples=50)
@given(
    answer=answers(),
    asked=st.permutations(NAMES).flatmap(lambda names: st.integers(0, 3).map(lambda n: names[:n])),
    binary=st.tuples(st.booleans(), st.booleans(), st.booleans()),
    request_id=st.text(max_size=20),
)
def test_a_client_reads_the_same_bits_from_every_form_of_answer(
    answer: tuple[np.ndarray, np.ndarray],
    asked: list[str],
    binary: tuple[bool, bool, bool],
    request_id: str,
) -> None:
    outputs = [InferRequestedOutput(name, form) for name, form in zip(asked, binary, strict=False)]
    given = tensor("images", PIXELS, "UINT8")
    request = images.decode(*body_of(given, outputs=outputs, request_id=request_id))
    body, length = images.encode(request, *answer)
    any_binary = not asked or any(binary[: len(asked)])
    assert (length is not None) == any_binary
    result = InferResult.from_response_body(body, header_length=length)
    found = result.get_response()
    assert found["model_name"] == RELEASED.name and found["model_version"] == RELEASED.version
    assert found.get("id", "") == request_id
    assert [output["name"] for output in found["outputs"]] == list(asked or NAMES)
    logits, probabilities = answer
    labels = [["a", "b", "ü"][index] for index in probabilities.argmax(axis=1)]
    for output in found["outputs"]:
        values = result.as_numpy(output["name"])
        if output["name"] == "label":
            texts = [text if isinstance(text, str) else text.decode() for text in values]
            assert texts == labels
        else:
            expected = logits if output["name"] == "logits" else probabilities
            np.testing.assert_array_equal(values, expected)
            assert values.dtype == np.float32


def test_without_a_wish_the_answer_is_json_with_doubles_of_the_same_bits() -> None:
    given = {"name": "images", "shape": [1, 6], "datatype": "UINT8", "data": [0] * 6}
    request = images.decode(json.dumps({"inputs": [given]}).encode(), None)
    values = np.array([[0.1, 1 / 3, 1e-30]], dtype=np.float32)
    body, length = images.encode(request, values, values)
    assert length is None
    outputs = {output["name"]: output for output in json.loads(body)["outputs"]}
    assert outputs["logits"]["data"] == values[0].astype(np.float64).tolist()
    assert outputs["label"] == {
        "name": "label", "datatype": "BYTES", "shape": [1], "data": ["b"],
    }  # fmt: skip


def test_an_outputs_own_wish_overrides_that_of_the_request() -> None:
    header = {
        "inputs": [{"name": "images", "shape": [1, 6], "datatype": "UINT8", "data": [0] * 6}],
        "parameters": {"binary_data_output": True, "priority": 3, "mine": "x"},
        "outputs": [{"name": "logits"}, {"name": "label", "parameters": {"binary_data": False}}],
        "unknown": [1],
    }
    request = images.decode(json.dumps(header).encode(), None)
    assert [output.binary for output in request.outputs] == [True, False]


@pytest.mark.parametrize("binary", [True, False])
def test_classes_come_as_value_index_and_label_the_highest_first(binary: bool) -> None:
    output = InferRequestedOutput("probabilities", binary, class_count=2)
    request = images.decode(*body_of(tensor("images", PIXELS, "UINT8"), outputs=[output]))
    values = np.array([[0.1, 0.1, 0.8], [0.3, 0.30000004, 0]], dtype=np.float32)
    body, length = images.encode(request, -values, values)
    found = InferResult.from_response_body(body, header_length=length).as_numpy("probabilities")
    texts = [text if isinstance(text, str) else text.decode() for text in found.ravel()]
    assert found.shape == (2, 2)
    assert texts == ["0.8:2:ü", "0.1:0:a", "0.30000004:1:b", "0.3:0:a"]


def test_the_label_is_the_one_that_the_threshold_decides() -> None:
    protocol = InferenceProtocol(manifest_of(MIXED, task="binary", threshold=0.25), max_rows=1)
    inputs = [{"name": name, **value} for name, value in row_of().items()]
    request = protocol.decode(json.dumps({"inputs": inputs}).encode(), None)
    values = np.array([[0.7, 0.3]], dtype=np.float32)
    assert json.loads(protocol.encode(request, values, values)[0])["outputs"][2]["data"] == ["yes"]


def test_requests_with_the_same_header_keep_their_own_data() -> None:
    for value in range(5):
        for rows in (1, 2):
            pixels = np.full((rows, 1, 2, 3), value, dtype=np.uint8)
            raw = images.decode(*body_of(tensor("images", pixels, "UINT8"))).raw
            np.testing.assert_array_equal(raw, pixels)
    for text in ("red", "3", ""):
        cells = {"size": "1", "weight": "", "new": "1", "day": "", "kind": text}
        given = {name: np.array([cell], dtype=np.object_) for name, cell in cells.items()}
        body = body_of(*[tensor(name, array, "BYTES") for name, array in given.items()])
        kind = table.decode(*body).raw[0, 3]
        assert math.isnan(kind) if text == "" else kind == ("red", "3").index(text)


def test_every_row_up_to_the_limit_is_taken_and_none_above() -> None:
    for rows, fine in ((MAX_ROWS, True), (MAX_ROWS + 1, False)):
        body = body_of(tensor("images", np.zeros((rows, 6), dtype=np.uint8), "UINT8"))
        if fine:
            assert len(images.decode(*body).raw) == rows
        else:
            with pytest.raises(DataError, match=r"'images': expected 1 to 64 rows, found 65"):
                images.decode(*body)
