"""What people and programs are told of a table's columns."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from artifacts.cells import encode_columns
from artifacts.example import example_instance
from artifacts.inputs import BooleanColumn, CategoryColumn, Column, DateColumn, TableInput
from artifacts.summary import column_lines, describe_input
from serving.openapi import _instance_schema, _predictions_schema

SPEC = TableInput(
    columns=(
        Column(name="age", low=17, high=90, typical=37),
        BooleanColumn(name="member", missing="fill", typical=False),
        CategoryColumn(name="work", categories=("Private", "State"), typical="Private"),
        DateColumn(
            name="joined", parts=("timestamp",), low="2001-01-01", high="2020-05-06",
            typical="2011-01-01",
        ),
    )
)  # fmt: skip


def test_columns_are_shown_with_their_types() -> None:
    assert describe_input(SPEC) == (
        "4 columns: age (number), member (boolean), work (2 categories), joined (date)"
    )
    assert describe_input(TableInput(columns=SPEC.columns[:1])) == "1 column of numbers: age"
    many = tuple(SPEC.columns[0].model_copy(update={"name": f"c{i}"}) for i in range(31))
    assert describe_input(TableInput(columns=many)).endswith(", c29 and 1 more")
    assert column_lines(TableInput(columns=many)) == []


def test_each_column_has_a_line() -> None:
    assert [line.split() for line in column_lines(SPEC)] == [
        ["age", "number", "17", "to", "90", "missing:", "refused"],
        ["member", "boolean", "true", "or", "false", "missing:", "answered"],
        ["work", "category", "2", "categories:", "Private,", "State", "missing:", "refused"],
        ["joined", "date", "2001-01-01", "to", "2020-05-06", "missing:", "refused"],
    ]


def test_the_api_document_says_what_each_column_takes() -> None:
    manifest: Any = SimpleNamespace(input=SPEC)
    schema = _instance_schema(manifest)
    assert schema["required"] == ["age", "member", "work", "joined"]
    properties = schema["properties"]
    kinds = {name: about.get("anyOf", [about]) for name, about in properties.items()}
    assert {name: [kind["type"] for kind in found] for name, found in kinds.items()} == {
        "age": ["number"],
        "member": ["boolean", "integer", "string"],
        "work": ["string", "number", "boolean"],
        "joined": ["string"],
    }
    for name, found in kinds.items():
        assert all(kind["nullable"] == (name == "member") for kind in found)
    raw, bad = encode_columns([[about["example"]] for about in properties.values()], SPEC)
    assert not bad
    golden: Any = SimpleNamespace(raw=raw)
    assert example_instance(manifest, golden) == {
        "age": 37.0, "member": False, "work": "Private", "joined": "2011-01-01",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("threshold", "said"),
    [
        (0.5, "The most probable label."),
        (0.3, "yes where its probability is above 0.3, else no; `top_k` orders by probability"),
    ],
)
def test_the_document_says_how_the_label_is_chosen(threshold: float, said: str) -> None:
    manifest: Any = SimpleNamespace(labels=("no", "yes"), threshold=threshold, reference="a@1")
    schema = _predictions_schema(manifest)["properties"]["predictions"]["items"]
    assert schema["properties"]["label"]["description"].startswith(said)
