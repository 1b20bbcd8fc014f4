"""Models for the Open Inference Protocol's codec, and the bytes that a Triton client sends."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
from tritonclient.http import InferenceServerClient, InferInput

from artifacts.bundle import read_bundle
from artifacts.inputs import (
    BooleanColumn,
    CategoryColumn,
    Column,
    DateColumn,
    ImageInput,
    TableInput,
)
from artifacts.manifest import Manifest
from serving.oip import InferenceProtocol
from tests.conftest import ROOT

RELEASED = read_bundle(ROOT / "tests" / "fixtures" / "released" / "schema-1-mlp").manifest
MAX_ROWS = 64


def manifest_of(spec: ImageInput | TableInput, *labels: str, **more: Any) -> Manifest:
    return RELEASED.model_copy(update={"input": spec, "labels": labels or ("no", "yes"), **more})


def number(name: str, missing: str = "reject") -> Column:
    return Column(name=name, missing=missing, low=0, high=1, typical=0.5)


GRAY = ImageInput(channels=1, height=2, width=3)
MIXED = TableInput(
    columns=(
        number("size"),
        number("weight", "fill"),
        BooleanColumn(name="new", missing="fill", typical=True),
        CategoryColumn(
            name="kind", missing="fill", categories=("red", "3", "0.1", "true"), typical="red"
        ),
        DateColumn(
            name="day", missing="fill", parts=("year", "month"), low="a", high="b", typical="c"
        ),
    )
)
images = InferenceProtocol(manifest_of(GRAY, "a", "b", "ü"), max_rows=MAX_ROWS)
table = InferenceProtocol(manifest_of(MIXED), max_rows=MAX_ROWS)


def tensor(name: str, array: np.ndarray, datatype: str, *, binary: bool = True) -> InferInput:
    return InferInput(name, list(array.shape), datatype).set_data_from_numpy(array, binary)


def body_of(*inputs: InferInput, **options: Any) -> tuple[bytes, int | None]:
    body, length = InferenceServerClient.generate_request_body(list(inputs), **options)
    return body, length


def column_of(cells: list[Any], datatype: str, *, nested: bool = False) -> dict[str, Any]:
    shape = [len(cells), 1] if nested else [len(cells)]
    data = [[cell] for cell in cells] if nested else cells
    return {"shape": shape, "datatype": datatype, "data": data}


def decode_json(protocol: InferenceProtocol, **inputs: dict[str, Any]) -> np.ndarray:
    given = [{"name": name, **content} for name, content in inputs.items()]
    return protocol.decode(json.dumps({"inputs": given}).encode(), None).raw


def row_of(**changed: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """One row of MIXED that is fine, but for what is changed."""
    row = {
        "size": column_of([1.5], "FP64"),
        "weight": column_of([2], "INT32"),
        "new": column_of([True], "BOOL"),
        "kind": column_of(["red"], "BYTES"),
        "day": column_of(["2026-01-31"], "BYTES"),
    }
    return {**row, **changed}


PIXELS = np.zeros((1, 1, 2, 3), dtype=np.uint8)
