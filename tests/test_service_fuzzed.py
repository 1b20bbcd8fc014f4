"""Real services under requests that nobody would write: none of them an error of the service's."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from artifacts.predictor import Predictor
from tests.answers import Serve, rows_of

ROUTES = (
    "/predict",
    "/predict/image",
    "/v2/models/digits/infer",
    "/v2/models/breast-cancer/infer",
    "/v2/repository/index",
)
WORDS = (
    "instances", "top_k", "b64", "inputs", "outputs", "name", "shape", "datatype", "data", "id",
    "parameters", "binary_data_size", "binary_data", "classification", "images", "probabilities",
    "label", "mean radius", "UINT8", "FP64", "BYTES", "BF16", "ready", "",
)  # fmt: skip
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.sampled_from([0, 1, 8, 64, 255, 10**400])
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8)
    | st.sampled_from(WORDS)
)
KEYS = st.sampled_from(WORDS) | st.text(max_size=4)
JSON = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)
TYPES = ("application/json", "image/png", "multipart/form-data; boundary=x", "text/plain")
HEADERS = st.fixed_dictionaries(
    {},
    optional={
        "content-type": st.sampled_from(TYPES),
        "inference-header-content-length": st.integers(-1, 600).map(str) | st.just("x"),
        "content-encoding": st.sampled_from(["gzip", "deflate", "identity", "br", ""]),
        "accept-encoding": st.sampled_from(["gzip", "deflate", "*", ""]),
        "expect": st.just("100-continue"),
    },
)


@pytest.fixture(scope="module")
def clients(serve: Serve) -> Iterator[list[httpx.Client]]:
    with serve("digits").client() as pictures, serve("breast-cancer").client() as tables:
        yield [pictures, tables]


def spoiled(document: Any, draw: st.DrawFn) -> Any:
    """The document with one place in it, however deep, replaced, taken out or doubled."""
    if isinstance(document, dict | list) and document and draw(st.integers(0, 5)):
        changed = document.copy()
        keys = list(document) if isinstance(document, dict) else range(len(document))
        place = draw(st.sampled_from(keys))
        how = draw(st.integers(0, 8))
        if how == 0:
            del changed[place]
        elif how == 1 and isinstance(document, list):
            changed.insert(place, document[place])
        elif how == 1:
            changed[draw(KEYS)] = document[place]
        else:
            changed[place] = spoiled(document[place], draw)
        return changed
    return draw(JSON)


def check(clients: list[httpx.Client], body: bytes, headers: dict[str, str]) -> None:
    """No answer of any route says that the service failed, and each that refuses says why."""
    for client in clients:
        for route in ROUTES:
            response = client.post(route, content=body, headers=headers, timeout=30)
            assert response.status_code < 500, (route, response.text)
            if response.status_code >= 400:
                assert response.json()["error"]


@settings(max_examples=60, deadline=None)
@given(body=st.binary(max_size=600), headers=HEADERS)
def test_random_bytes_are_refused_with_a_reason(
    clients: list[httpx.Client], body: bytes, headers: dict[str, str]
) -> None:
    check(clients, body, headers)


@settings(max_examples=60, deadline=None)
@given(document=JSON, headers=HEADERS)
def test_random_json_is_refused_with_a_reason(
    clients: list[httpx.Client], document: Any, headers: dict[str, str]
) -> None:
    check(clients, json.dumps(document).encode(), headers)


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_what_is_almost_a_request_is_answered_or_refused_with_a_reason(
    clients: list[httpx.Client], cancer: Predictor, data: st.DataObject
) -> None:
    row = rows_of(cancer, cancer.golden.raw[:1])[0]
    columns = [
        {"name": name, "shape": [1], "datatype": "FP64", "data": [value]}
        for name, value in row.items()
    ]
    sized = {"binary_data_size": 64}
    pixels = {"name": "images", "shape": [1, 1, 8, 8], "datatype": "UINT8"}
    wanted = [{"name": "logits", "parameters": {"classification": 2, "binary_data": True}}]
    document = data.draw(
        st.sampled_from(
            [
                {"instances": [[[0] * 8] * 8, {"b64": "aGVsbG8="}], "top_k": 3},
                {"instances": [row, row], "top_k": 1},
                {"id": "1", "inputs": columns, "outputs": wanted},
                {"id": "1", "inputs": [{**pixels, "data": [0] * 64}], "outputs": wanted},
                {"inputs": [{**pixels, "parameters": sized}], "outputs": wanted},
            ]
        )
    )
    changed = data.draw(st.composite(lambda draw: spoiled(document, draw))())
    body = json.dumps(changed).encode()
    headers = {"inference-header-content-length": str(len(body))}
    check(clients, body, {})
    check(clients, body + bytes(64), headers)


@pytest.mark.parametrize("name", ["digits", pytest.param("breast-cancer", marks=pytest.mark.slow)])
def test_the_service_keeps_to_its_openapi_document(serve: Serve, name: str, tmp_path: Path) -> None:
    checks = "not_a_server_error,status_code_conformance,content_type_conformance"
    checks += ",response_schema_conformance,unsupported_method"
    command = [sys.executable, "-m", "schemathesis.cli", "run", f"{serve(name).url}/docs.json"]
    command += ["--checks", checks, "--max-examples", "15", "--seed", "1", "--no-color"]
    command += ["--phases", "examples,coverage,fuzzing", "--request-timeout", "30"]
    command += ["--suppress-health-check", "all", "--warnings", "off"]
    result = subprocess.run(
        command, cwd=tmp_path, capture_output=True, text=True, timeout=240, check=False
    )
    assert result.returncode == 0, result.stdout[-6000:] + result.stderr[-2000:]
